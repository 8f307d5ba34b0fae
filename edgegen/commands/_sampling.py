"""How pictures are sampled: as typed, as the model says of itself, or as its pipeline does."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline
from omegaconf import DictConfig

from ..pipelines.recommended import read_sampling
from ..sampling.generate import default_guidance, default_size
from ._prompts import check_unicode


def read_text(cfg: DictConfig, key: str) -> str | None:
    value = cfg.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}={value}: must be one text")
    if value is not None:
        check_unicode(key, value)
    return value


def picture_size(cfg: DictConfig, pipe: DiffusionPipeline) -> tuple[int, int]:
    sizes = []
    for key, own in zip(("height", "width"), default_size(pipe), strict=True):
        value = cfg[key] if cfg[key] is not None else cfg.model.get(key)
        value = own if value is None else value
        # 8: the pipelines of diffusers want it whatever the autoencoder's factor.
        if not isinstance(value, int) or value < 8 or value % 8:
            raise ValueError(f"{key}={value}: must be a multiple of 8 pixels")
        sizes.append(value)
    return sizes[0], sizes[1]


def guidance_scale(cfg: DictConfig, pipe: DiffusionPipeline) -> float:
    value = typed_or_own(cfg, "guidance")
    value = default_guidance(pipe) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e4:
        raise ValueError(f"guidance={value}: must be a number, 0 or more")
    return float(value)


def typed_or_own(cfg: DictConfig, key: str) -> Any:
    """A setting as typed, else the model's own; None where neither says.

    Its own is what its config says, else the `sampling.json` in its folder.
    """
    model = cfg.get("model") or {}
    for value in (cfg.get(key), model.get(key)):
        if value is not None:
            return value
    return read_sampling(model.get("source")).get(key)


def image_guidance(cfg: DictConfig) -> float | None:
    """Of an editor, by its picture: as typed, else the model's own; None leaves it to diffusers."""
    value = typed_or_own(cfg, "image_guidance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 1e4:
        raise ValueError(f"image_guidance={value}: must be a number, 1 or more")
    return float(value)
