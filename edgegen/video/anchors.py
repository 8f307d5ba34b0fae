"""Which frames are anchors: policies, and the scenes that some of them look for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from PIL import Image

ALLOWED = (
    "a number of frames at equal intervals, middle, first, none, a list of frame numbers, or "
    "{scenes: anchors a scene}"
)


@dataclass(frozen=True)
class Scene:
    """Frames `start` to `stop` − 1, which share the anchors; these are among them, rising.

    Without anchors every frame stands for itself.
    """

    start: int
    stop: int
    anchors: tuple[int, ...]

    def others(self) -> Iterator[int]:
        """The frames that are no anchors."""
        chosen = set(self.anchors)
        return (frame for frame in range(self.start, self.stop) if frame not in chosen)


class Anchors(Protocol):
    """A policy: which frames of a clip are anchors, and for which frames."""

    def scenes(self, frames: int, changes: Sequence[float]) -> list[Scene]:
        """The clip's scenes, in order, which hold every frame once.

        Args:
            frames: how many there are, from 1.
            changes: how much each frame differs from the one before (see `change`); 0 for the
                first.

        Raises:
            ValueError: the clip has fewer frames than anchors are asked for.
        """


@dataclass(frozen=True)
class Uniform:
    """The middle frames of `count` equal parts of the clip (FAIRY has 3; 1 is the middle one)."""

    count: int = 3

    def __post_init__(self) -> None:
        _check_count(self.count)

    def scenes(self, frames: int, changes: Sequence[float]) -> list[Scene]:
        _check_enough(self.count, frames)
        return [Scene(0, frames, spread(0, frames, self.count))]


@dataclass(frozen=True)
class Listed:
    """Frames by their numbers, from 0."""

    frames: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.frames or len(set(self.frames)) < len(self.frames) or min(self.frames) < 0:
            raise ValueError(
                f"anchors={list(self.frames)}: must be frame numbers from 0, each once"
            )

    def scenes(self, frames: int, changes: Sequence[float]) -> list[Scene]:
        if max(self.frames) >= frames:
            raise ValueError(
                f"anchors={list(self.frames)}: the clip has the frames 0 to {frames - 1}"
            )
        return [Scene(0, frames, tuple(sorted(self.frames)))]


@dataclass(frozen=True)
class EachScene:
    """`count` anchors at equal intervals in every scene; shorter scenes have fewer.

    Frames never attend to another scene's anchors.

    Attributes:
        threshold: change (0 to 255) from which on a frame may begin a scene.
        least: frames that a scene has at least.
    """

    count: int = 3
    threshold: float = 24.0
    least: int = 6

    def __post_init__(self) -> None:
        _check_count(self.count)

    def scenes(self, frames: int, changes: Sequence[float]) -> list[Scene]:
        _check_enough(self.count, frames)
        edges = [0, *find_cuts(changes, self.threshold, self.least), frames]
        return [
            Scene(start, stop, spread(start, stop, min(self.count, stop - start)))
            for start, stop in pairwise(edges)
        ]


@dataclass(frozen=True)
class Alone:
    """No anchors: frame by frame, each edited as a picture."""

    def scenes(self, frames: int, changes: Sequence[float]) -> list[Scene]:
        return [Scene(0, frames, ())]


def parse_anchors(value: Any) -> Anchors:
    """The policy that a setting names: see `ALLOWED`. A policy stands for itself.

    Raises ValueError for anything else.
    """
    if hasattr(value, "scenes"):
        return value
    if value == "middle":
        return Uniform(1)
    if value == "none":
        return Alone()
    if value == "first":
        return Listed((0,))
    if _whole(value):
        return Uniform(value)
    if isinstance(value, Mapping) and set(value) == {"scenes"} and _whole(value["scenes"]):
        return EachScene(value["scenes"])
    if isinstance(value, Sequence) and not isinstance(value, str) and all(map(_whole, value)):
        return Listed(tuple(value))
    raise ValueError(f"anchors={value}: allowed are {ALLOWED}")


def spread(start: int, stop: int, count: int) -> tuple[int, ...]:
    """The middles of `count` equal parts of the frames `start` to `stop` − 1."""
    return tuple(start + (2 * i + 1) * (stop - start) // (2 * count) for i in range(count))


def signature(pixels: np.ndarray, side: int = 32) -> np.ndarray:
    """What a frame (H, W, 3) uint8 looks like from afar: (side, side, 3) float32, 0 to 255."""
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two signatures, 0 to 255."""
    return float(np.abs(after - before).mean())


def find_cuts(changes: Sequence[float], threshold: float, least: int) -> list[int]:
    """Numbers of the frames that begin a new scene.

    There the change is above `threshold` and more than three times that of the frames around it,
    which tells a cut from fast motion; of cuts that are less than `least` frames apart the first
    counts.
    """
    values = np.asarray(changes, np.float64)
    cuts = [0]
    for frame in range(1, len(values)):
        near = np.r_[values[max(1, frame - 3) : frame], values[frame + 1 : frame + 4]]
        usual = float(np.median(near)) if len(near) else 0.0
        far = frame - cuts[-1] >= least and len(values) - frame >= least
        if far and values[frame] > max(threshold, 3 * usual):
            cuts.append(frame)
    return cuts[1:]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"anchors={count}: must be 1 or more")


def _check_enough(count: int, frames: int) -> None:
    if count > frames:
        raise ValueError(f"anchors={count}: the clip has only {frames} frames")
