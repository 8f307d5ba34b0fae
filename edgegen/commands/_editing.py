"""What the commands that edit share: how a model wants to be sampled from, and held-out crops."""

from __future__ import annotations

from omegaconf import DictConfig

from ..data.painting import PaintedCrops
from ..sampling.guidance import EDIT_SCALES
from ._generation import typed_or_own
from ._numbers import read_number, whole_number

_STEPS = 10


def edit_scales(cfg: DictConfig) -> dict[str, float]:
    """`guidance` and `image_guidance` of an edit: as typed, the model's own, or diffusers'."""
    found = {}
    for key, usual in zip(("guidance", "image_guidance"), EDIT_SCALES, strict=True):
        value = typed_or_own(cfg, key)
        found[key] = read_number({key: usual if value is None else value}, key)
    return found


def edit_steps(cfg: DictConfig) -> int:
    """`steps` of an edit: as typed, the model's own, or 10."""
    value = typed_or_own(cfg, "steps")
    return whole_number({"steps": _STEPS if value is None else value}, "steps", 1)


def crops_of(cfg: DictConfig, size: int) -> PaintedCrops:
    """The held-out crops in `cfg.crops`. Raises ValueError for another size than the drawings'."""
    crops = PaintedCrops(cfg.crops, "held_out")
    if crops.size != size:
        raise ValueError(
            f"crops={cfg.crops}: has pictures of {crops.size} pixels; with size={size} they must "
            "have as many (build_edits, size=…)"
        )
    return crops
