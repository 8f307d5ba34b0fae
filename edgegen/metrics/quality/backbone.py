"""Feature extractors of pictures, from a module, a path or a hub id."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pipelines.checkpoints import one_line, read_json
from ...pipelines.hub import is_hub_id
from .clip import Clip, image_processor, model_folder
from .efflite0 import BATCH, EffLite0
from .pictures import as_bytes, check_pictures, optional


def load_backbone(backbone: nn.Module | str | Path) -> nn.Module:
    """A module that takes (B, 3, H, W) floats in [0, 1] to (B, D) features, with a `name`.

    Args:
        backbone: one of
            an `nn.Module` that does so already, taken as it is (its name is `name_of` it);
            `"efflite0"`, which needs no download;
            a file of Inception weights (`.pth`, as torch-fidelity and pytorch-fid share them);
            a folder or hub id of a transformers model of type `clip` or `dinov2`.

    Raises ValueError or FileNotFoundError, one line each, for anything else.
    """
    if isinstance(backbone, nn.Module):
        return backbone
    if str(backbone) == "efflite0":
        return EffLite0()
    path = Path(backbone).expanduser()
    if path.is_file():
        return Inception(path)
    folder = model_folder(backbone, "backbone", "'efflite0', a file of Inception weights")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json of a transformers model in it")
    kind = read_json(folder / "config.json").get("model_type")
    name = short_name(backbone)
    if kind == "clip":
        return Clip(folder, name=name)
    if kind == "dinov2":
        return DinoV2(folder, name=name)
    raise ValueError(f"{folder}: a model of type '{kind}' is no backbone: allowed are clip, dinov2")


def name_of(backbone: nn.Module) -> str:
    """Under which name a backbone's results appear: its `name`, else its class in lower case."""
    name = getattr(backbone, "name", None)
    return name if isinstance(name, str) else type(backbone).__name__.lower()


def short_name(source: str | Path) -> str:
    """`facebook/dinov2-base` or `/models/dinov2-base/` to `dinov2_base`."""
    source = str(source)
    last = source.split("/")[-1] if is_hub_id(source) else Path(source).expanduser().resolve().name
    return re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")


def features_of(backbone: nn.Module, pictures: Tensor, batch: int = BATCH) -> Tensor:
    """(B, 3, H, W) floats in [0, 1] to (B, D) float32 features, on the backbone's device.

    The backbone always sees `batch` pictures, the last ones repeated, so that a picture's features
    do not depend on how many come with it.
    """
    check_pictures(pictures)
    device = next((p.device for p in backbone.parameters()), pictures.device)
    rows = []
    with torch.no_grad():
        for part in pictures.to(device).split(batch):
            padding = part[-1:].expand(batch - len(part), -1, -1, -1)
            rows.append(backbone(torch.cat([part, padding]))[: len(part)].float())
    return torch.cat(rows)


class Frozen(nn.Module):
    """A judge: always in evaluation mode, without gradients."""

    name: str

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        return super().train(False)


class Inception(Frozen):
    """Pooled features (2048) of the Inception v3 that FID is defined with, as in torch-fidelity.

    Pictures are rounded to 8 bits and resized to 299 × 299 as TensorFlow 1 did. Needs the extra
    `fid`, and with it a torchvision that fits the installed torch.

    Args:
        weights: file with the state dictionary of torch-fidelity or pytorch-fid
            (`weights-inception-2015-12-05-6726825d.pth`).
    """

    name = "inception"
    num_features = 2048

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        package = optional("torch_fidelity", "torch-fidelity", "fid")
        try:
            # torch-fidelity unpickles whatever is in the file: only a plain state dictionary may
            # get that far.
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"{weights}: no readable weights: {one_line(error)}") from error
        if not isinstance(state, dict) or "Mixed_7c.branch_pool.conv.weight" not in state:
            raise ValueError(f"{weights}: holds no Inception v3 weights as torch-fidelity has them")
        try:
            self.network = package.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except RuntimeError as error:
            raise ValueError(f"{weights}: not Inception v3 weights: {one_line(error)}") from error

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] to (B, 2048)."""
        return self.network(as_bytes(pictures))[0]


class DinoV2(Frozen):
    """The class token of a DINOv2 after its last norm, for FD-DINOv2 (Stein et al. 2023).

    As there, the whole picture is resized to 224 × 224 (bicubic, by Pillow), not cropped.

    Args:
        folder: a transformers folder of a `Dinov2Model`, with `preprocessor_config.json`.
        name: under which results appear.
    """

    size = 224

    def __init__(self, folder: str | Path, *, name: str = "dinov2") -> None:
        from transformers import Dinov2Model

        super().__init__()
        self.name = name
        self.processor = image_processor(Path(folder))
        try:
            self.network = Dinov2Model.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder}: not readable as Dinov2Model: {one_line(error)}") from error
        self.requires_grad_(False).eval()

    @property
    def num_features(self) -> int:
        """Length of a feature vector."""
        return self.network.config.hidden_size

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] to (B, D)."""
        square: dict[str, Any] = {"height": self.size, "width": self.size}
        pixels = self.processor(
            list(as_bytes(pictures).cpu()), size=square, do_center_crop=False, return_tensors="pt"
        ).pixel_values
        return self.network(pixels.to(pictures.device)).pooler_output
