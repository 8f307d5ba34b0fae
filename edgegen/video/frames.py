"""A clip's frames on their way to the model: scanned once, then read in order, a few at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ..media.clips import Clip, Timing, fitted
from .anchors import change, signature


@dataclass(frozen=True)
class Scan:
    """What one pass over a clip tells: all of it is a few bytes a frame.

    Attributes:
        timing: when the frames are shown; as many as are to be edited.
        changes: how much each frame differs from the one before, 0 to 255.
        size: height and width in pixels.
        whole: whether these are all frames of the clip.
    """

    timing: Timing
    changes: Sequence[float]
    size: tuple[int, int]
    whole: bool

    def __len__(self) -> int:
        return len(self.timing.times)


def scan(clip: Clip, limit: int | None = None) -> Scan:
    """Go through a clip, or its first `limit` frames; unknown durations last until the next frame.

    Raises ValueError for a clip without frames, and what the clip itself raises.
    """
    times, durations, changes = array("q"), array("q"), array("d")
    before: np.ndarray | None = None
    size, whole = (0, 0), True
    for frame in clip:
        if limit is not None and len(times) == limit:
            whole = False
            break
        seen = signature(frame.pixels)
        changes.append(0.0 if before is None else change(before, seen))
        times.append(frame.time)
        durations.append(frame.duration)
        before, size = seen, (frame.pixels.shape[0], frame.pixels.shape[1])
    if not times:
        raise ValueError(f"{clip.name}: holds no frame")
    for index in range(len(times) - 1):
        durations[index] = durations[index] or times[index + 1] - times[index]
    if not durations[-1]:
        usual = durations[-2] if len(times) > 1 else round(1 / (25 * clip.time_base))
        durations[-1] = max(1, usual)
    return Scan(Timing(clip.time_base, times, durations), changes, size, whole)


@dataclass(frozen=True)
class Canvas:
    """The size in which frames are edited: `height` × `width`, padded to multiples of `multiple`.

    Frames are resampled to it and padded by repeating their last row and column; what comes out is
    cut back, so that nothing is stretched.
    """

    height: int
    width: int
    multiple: int

    @property
    def padded(self) -> tuple[int, int]:
        return _up(self.height, self.multiple), _up(self.width, self.multiple)

    def place(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 of any size → (padded height, padded width, 3)."""
        pixels = fitted(pixels, (self.height, self.width))
        height, width = self.padded
        short = ((0, height - self.height), (0, width - self.width), (0, 0))
        return np.pad(pixels, short, mode="edge")

    def cut(self, picture: torch.Tensor) -> np.ndarray:
        """(padded height, padded width, 3) uint8 → (height, width, 3)."""
        return picture[: self.height, : self.width].numpy()


def make_canvas(size: tuple[int, int], resolution: int, multiple: int) -> Canvas:
    """The size of the frames, reduced so that the longer side has `resolution` pixels at most.

    Raises ValueError where that is less than one latent.
    """
    if resolution < multiple:
        raise ValueError(f"resolution={resolution}: must be at least {multiple} pixels")
    scale = min(1.0, resolution / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return Canvas(height, width, multiple)


class Reader:
    """Reads a clip in order; holds no frame longer than asked for."""

    def __init__(self, clip: Clip, canvas: Canvas) -> None:
        self._frames: Iterator[tuple[int, np.ndarray]] = (
            (index, frame.pixels) for index, frame in enumerate(clip)
        )
        self._canvas = canvas
        self._next = 0

    def take(self, numbers: Sequence[int]) -> torch.Tensor:
        """Frames (n, 3, H, W) in −1 to 1; the numbers rise, and are past those taken before."""
        pixels = np.stack([self._one(number) for number in numbers])
        # In the layout and by the arithmetic of diffusers' own image processors.
        return 2 * (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255) - 1

    def _one(self, number: int) -> np.ndarray:
        skipped = number - self._next
        self._next = number + 1
        _, pixels = next(islice(self._frames, skipped, None))
        return self._canvas.place(pixels)


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
