"""Single parts of a pipeline from folders: what trainings begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from .tokenizers import load_tokenizer


def _part(kind: Any, folder: str | Path) -> Any:
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no {kind.__name__} there (no config.json)")
    part = kind.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    return part.float()


def autoencoder(folder: str | Path) -> AutoencoderKL:
    """The AutoencoderKL in a folder, float32."""
    return _part(AutoencoderKL, folder)


def unet(folder: str | Path) -> UNet2DConditionModel:
    """The UNet2DConditionModel in a folder, float32."""
    return _part(UNet2DConditionModel, folder)


def clip(folder: str | Path) -> CLIPModel:
    """The CLIPModel in a folder, float32."""
    return _part(CLIPModel, folder)


def clip_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The CLIPTokenizer in a folder."""
    return load_tokenizer(Path(folder).expanduser())
