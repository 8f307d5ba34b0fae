"""What the commands that edit share: how a model wants to be sampled from, and held-out crops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from tqdm import tqdm

from ..data.painting import PaintedCrops
from ..sampling.generate import default_guidance
from ..sampling.guidance import EDIT_SCALES
from ._numbers import read_number, whole_number
from ._sampling import typed_or_own

_STEPS = 10


def edit_scales(cfg: DictConfig, pipe: DiffusionPipeline) -> dict[str, float]:
    """`guidance` and `image_guidance` of an edit: as typed, the model's own, or the pipeline's."""
    usual = {"guidance": default_guidance(pipe), "image_guidance": EDIT_SCALES[1]}
    found = {}
    for key, value in usual.items():
        asked = typed_or_own(cfg, key)
        found[key] = read_number({key: value if asked is None else asked}, key)
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


class FrameBar:
    """A progress bar in frames, for `VideoEditor.edit`; appears with the first work done.

    Args:
        description: goes before the bar.
        first: called when it appears.
        silent: whether it counts without being seen.

    Attributes:
        done, total: frames' worth of work newly done, and of all that is to be made.
    """

    def __init__(
        self,
        description: str | None,
        first: Callable[[], object] | None = None,
        silent: bool = False,
    ) -> None:
        self.done, self.total = 0.0, 1
        self._description, self._first, self._silent = description, first, silent
        self._bar: tqdm[Any] | None = None

    def update(self, frames: float, total: int) -> None:
        """To be given as `progress`."""
        if self._bar is None:
            if self._first is not None:
                self._first()
            layout = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} frames [{elapsed}<{remaining}, "
            self._bar = tqdm(
                desc=f"{self._description}: " if self._description else None,
                total=total,
                unit="frame",
                bar_format="{desc}" + layout + "{rate_fmt}]",
                disable=self._silent,
            )
        self.done, self.total = self.done + frames, total
        self._bar.update(frames)

    def __enter__(self) -> FrameBar:
        return self

    def __exit__(self, error: object, *rest: object) -> None:
        if self._bar is None:
            return
        if error is None:  # frames that were there from before are not counted: it ends full
            self._bar.total = round(self._bar.n, 1)
            self._bar.refresh()
        self._bar.close()
