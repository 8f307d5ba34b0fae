"""How a clip holds over time, from its pixels: flicker and warp error.

Clips are (T, 3, H, W) floats in [0, 1]: differences of 8-bit numbers would wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Flow = Callable[[Tensor, Tensor], Tensor]
"""Two (3, H, W) frames to the (2, H, W) displacement (x, y in pixels) that leads from each pixel of
the first to its place in the second: second(p + flow(p)) = first(p)."""


def flicker(clip: Tensor) -> float:
    """VBench temporal flickering: (255 − mean |f_t − f_(t+1)|) / 255, of frames up to 255.

    In [0, 1], higher is steadier. The mean is over pixels, channels and consecutive frames.
    Source: Huang et al. 2024 (VBench), who compute it on static scenes: in others it counts the
    motion as flicker.
    """
    _check(clip)
    return 1 - (clip[1:].double() - clip[:-1].double()).abs().mean().item()


def warp_error(source: Tensor, edited: Tensor, flow: Flow) -> float:
    """Mean |difference| of an edited frame and the one before, moved as the source moves.

    For each t, the edited frame t is warped to t + 1 by the flow of the *source* between the two,
    and compared with the edited frame t + 1 over all pixels that are not occluded (`visible`): the
    mean over pixels and channels, in [0, 1], then over t. A t without any visible pixel is left
    out. Source: Lai et al. 2018, with the absolute instead of the squared difference.

    Args:
        source, edited: (T, 3, H, W), of one shape.
        flow: such as `flow.dis_flow`.

    Raises ValueError for shapes that differ, and where no pixel is visible in any frame.
    """
    _check(source)
    if source.shape != edited.shape:
        shapes = f"{tuple(source.shape)} and {tuple(edited.shape)}"
        raise ValueError(f"source and edited clip must be of one shape, got {shapes}")
    pairs = []
    for t in range(len(source) - 1):
        backward = flow(source[t + 1], source[t]).double().to(edited.device)
        forward = flow(source[t], source[t + 1]).double().to(edited.device)
        pairs.append((backward, visible(backward, forward)))
    return _moved_error(edited, pairs)


def known_warp_error(edited: Tensor, backward: Tensor, seen: Tensor) -> float:
    """`warp_error` where flow and occlusion are known, instead of estimated.

    Args:
        edited: (T, 3, H, W).
        backward: (T − 1, 2, H, W): from each frame but the first to the one before.
        seen: (T − 1, H, W) bool: which of its pixels are seen there.

    Raises ValueError for shapes that do not match, and where no pixel is seen in any frame.
    """
    _check(edited)
    pairs, size = len(edited) - 1, tuple(edited.shape[-2:])
    if tuple(backward.shape) != (pairs, 2, *size) or tuple(seen.shape) != (pairs, *size):
        raise ValueError(
            f"a clip of shape {tuple(edited.shape)} needs flow {(pairs, 2, *size)} and a mask "
            f"{(pairs, *size)}, got {tuple(backward.shape)} and {tuple(seen.shape)}"
        )
    device = edited.device
    return _moved_error(
        edited, list(zip(backward.double().to(device), seen.to(device), strict=True))
    )


def _moved_error(edited: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    errors = []
    for t, (backward, seen) in enumerate(pairs):
        if seen.any():
            moved = warp(edited[t].double(), backward)
            difference = (edited[t + 1].double() - moved).abs().mean(0)
            errors.append(difference[seen].mean().item())
    if not errors:
        raise ValueError("warp error: the flow leaves no pixel visible in any pair of frames")
    return sum(errors) / len(errors)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """Picture at p + flow(p), bilinear; the border continues: (C, H, W), (2, H, W) to (C, H, W)."""
    height, width = picture.shape[-2:]
    x, y = _places(flow)
    # grid_sample's −1 and 1 are the centres of the first and the last pixel.
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
    return functional.grid_sample(
        picture[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def visible(flow: Tensor, back: Tensor) -> Tensor:
    """Which pixels of a frame are seen in the other one: (H, W) bool.

    Not seen are those that the flow leads out of the picture, and those from which it does not lead
    back: |f + b(p + f)| > 0.01 (|f| + |b(p + f)|) + 0.5, in pixels. Source: Meister et al. 2018
    (UnFlow), in the form without squares of Xu et al. 2022 (GMFlow).

    Args:
        flow: (2, H, W) from this frame to the other.
        back: (2, H, W) from the other to this one.
    """
    height, width = flow.shape[-2:]
    x, y = _places(flow)
    returned = warp(back, flow)
    lengths = flow.norm(dim=0) + returned.norm(dim=0)
    consistent = (flow + returned).norm(dim=0) <= 0.01 * lengths + 0.5
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return consistent & inside


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    height, width = flow.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)[None]
    return columns + flow[0], rows + flow[1]


def _check(clip: Tensor) -> None:
    shape = tuple(clip.shape)
    if clip.ndim != 4 or clip.shape[1] != 3 or len(clip) < 2 or not clip.is_floating_point():
        raise ValueError(f"a clip must be (T, 3, H, W) floats, T ≥ 2: got {shape} of {clip.dtype}")
