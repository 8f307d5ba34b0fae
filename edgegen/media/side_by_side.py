"""Clips next to each other, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .clips import Clip, fitted


def side_by_side(clips: Sequence[Clip], gap: int = 4) -> Iterator[np.ndarray]:
    """The frames of clips from left to right, in the size of the largest, white between them.

    As many as the shortest has; each (H, n · W + (n − 1) · gap, 3) uint8.

    Args:
        gap: pixels between two clips.
    """
    sizes = [next(iter(clip)).pixels.shape[:2] for clip in clips]
    size = max(sizes, key=lambda each: each[0] * each[1])
    between = np.full((size[0], gap, 3), 255, np.uint8)
    for frames in zip(*clips, strict=False):
        parts: list[np.ndarray] = []
        for frame in frames:
            parts += [between, fitted(frame.pixels, size)]
        yield np.concatenate(parts[1:], 1)
