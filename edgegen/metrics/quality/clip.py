"""A CLIP that judges: embeddings of pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...pipelines.checkpoints import one_line
from ...pipelines.hub import fetch, is_hub_id
from ...pipelines.tokenizers import load_tokenizer
from .pictures import as_bytes, check_pictures

_FILES = ("*.json", "merges.txt", "*.safetensors")


class Clip(nn.Module):
    """Embeddings by a transformers `CLIPModel`: a judge, or `openai/clip-vit-large-patch14`.

    The judge of a result is never the model that conditioned it, taught it or served as its loss.

    Pictures are rounded to 8 bits and prepared as the folder's `preprocessor_config.json` says, by
    Pillow (which backend transformers takes by itself depends on what is installed). Captions are
    cut off at the model's length.

    Args:
        source: folder with model, tokenizer and `preprocessor_config.json`, or hub id.
        name: under which results appear, as in `quality/clip_NAME`.

    Raises FileNotFoundError or ValueError, one line each, for a folder without these.
    """

    def __init__(self, source: str | Path, *, name: str) -> None:
        from transformers import CLIPModel

        super().__init__()
        self.name = name
        folder = model_folder(source, "clip", "a CLIPModel's folder")
        self.processor = image_processor(folder)
        self.tokenizer = load_tokenizer(folder)
        try:
            self.network = CLIPModel.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder}: not readable as CLIPModel: {one_line(error)}") from error
        self.requires_grad_(False).eval()

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return self.network.config.projection_dim

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.network.logit_scale.device

    def train(self, mode: bool = True) -> Clip:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] to (B, D), not normalised."""
        check_pictures(pictures)
        pixels = self.processor(list(as_bytes(pictures).cpu()), return_tensors="pt").pixel_values
        # get_image_features gives a tensor or a model output, as the version of transformers is.
        pooled = self.network.vision_model(pixel_values=pixels.to(self.device)).pooler_output
        return self.network.visual_projection(pooled)

    def pictures(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] to (B, D) unit embeddings, float32."""
        return functional.normalize(self(pictures).float(), dim=-1)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """B texts to (B, D) unit embeddings, float32."""
        tokens = self.tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        pooled = self.network.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return functional.normalize(self.network.text_projection(pooled).float(), dim=-1)


def image_processor(folder: Path) -> Any:
    """The Pillow image processor that a folder describes.

    Raises FileNotFoundError where it describes none: the mean and deviation that a network wants
    cannot be guessed from its weights.
    """
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no preprocessor_config.json in it, which says how pictures are prepared"
        )
    try:
        return AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: preprocessor_config.json: {one_line(error)}") from error


def model_folder(source: str | Path, option: str, also: str) -> Path:
    """The folder of a transformers model, fetched where `source` is a hub id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if is_hub_id(str(source)):
        return fetch(str(source), _FILES)
    raise FileNotFoundError(
        f"{option} '{source}': no such file or folder; allowed are {also}, a folder or a hub id"
    )
