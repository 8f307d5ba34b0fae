"""Where the attention of a frame lands in the anchors (FAIRY, arXiv 2312.13834, figure 2).

Attention across frames is an implicit correspondence: where the flow is known, it can be compared
with the true one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Landing:
    """Of the attention of a frame's tokens.

    Attributes:
        anchors: share of it that goes to the anchors; the rest stays in the frame.
        hit: of what goes to an anchor that shows a token's place, the share that lands within the
            radius of that place; mean over tokens and anchors. None where no anchor shows any.
        chance: what `hit` is where attention is the same everywhere.
    """

    anchors: float
    hit: float | None
    chance: float | None


def token_grid(size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Rows and columns of a layer's tokens, for latents of `size` (height, width).

    Each level of a UNet halves the sides, rounding up. Raises ValueError where none has so many.
    """
    height, width = size
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != tokens:
        raise ValueError(f"{tokens} tokens fit no level of latents of {size[0]} × {size[1]}")
    return height, width


def token_places(flow: Tensor, seen: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the tokens of a frame lie in an anchor, by the flow at the tokens' middles.

    Args:
        flow: (2, H, W) pixels from the frame to the anchor.
        seen: (H, W) bool: which pixels are seen there.
        grid: rows and columns of tokens.

    Returns:
        (T, 2): row and column in tokens, middles at whole numbers; and (T,) bool.
    """
    height, width = flow.shape[-2:]
    tall, wide = height / grid[0], width / grid[1]
    y = (torch.arange(grid[0], dtype=torch.float64) + 0.5) * tall - 0.5
    x = (torch.arange(grid[1], dtype=torch.float64) + 0.5) * wide - 0.5
    rows, columns = (y + 1e-6).round().long(), (x + 1e-6).round().long()
    at = flow.double()[:, rows][:, :, columns]
    row = (y[:, None] + at[1] + 0.5) / tall - 0.5
    column = (x[None] + at[0] + 0.5) / wide - 0.5
    return torch.stack([row, column], -1).flatten(0, 1), seen[rows][:, columns].flatten()


def landing(
    weights: Tensor, places: Tensor, seen: Tensor, grid: tuple[int, int], radius: float = 1.0
) -> Landing:
    """Where the attention of one frame lands.

    Args:
        weights: (T, K) attention of T tokens, rows of sum 1; the last A · T of the K keys are the
            anchors', anchor by anchor.
        places: (A, T, 2) true row and column of every token in every anchor, see `token_places`.
        seen: (A, T) bool: whether that anchor shows it.
        grid: rows and columns of the tokens.
        radius: in tokens, of the larger of the two distances.
    """
    anchors, tokens = seen.shape
    if tokens != grid[0] * grid[1] or weights.shape[0] != tokens:
        raise ValueError(f"{tuple(weights.shape)} weights do not fit {grid[0]} × {grid[1]} tokens")
    weights = weights.double()
    on = weights[:, weights.shape[1] - anchors * tokens :].unflatten(1, (anchors, tokens))
    number = torch.arange(tokens)
    own = torch.stack([number // grid[1], number % grid[1]], -1).double()
    distance = (places.double()[:, :, None] - own).abs().amax(-1)  # (A, T, T)
    near = (distance <= radius).transpose(0, 1)
    total = on.sum(-1)
    known = seen.T & (total > 0)
    if not known.any():
        return Landing(total.sum(1).mean().item(), None, None)
    hit = (on * near).sum(-1)[known] / total[known]
    chance = near.double().mean(-1)[known]
    return Landing(total.sum(1).mean().item(), hit.mean().item(), chance.mean().item())
