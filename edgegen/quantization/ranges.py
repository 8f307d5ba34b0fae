"""Finding the range of a grid: which values its ends stand for.

All functions take values (rows, n) and give a scale and a zero point (rows, 1) a row, in float32.
They work on the `meta` device.
"""

from __future__ import annotations

import torch

from .grids import Grid, fake_quantize

METHODS = ("minmax", "percentile", "mse", "lp")
Scales = tuple[torch.Tensor, torch.Tensor | None]

SHARES = tuple(1 - step / 50 for step in range(41))  # of the full range, that are tried
_SMALLEST = 1e-30


def find_range(
    values: torch.Tensor,
    grid: Grid,
    method: str = "minmax",
    *,
    percentile: float = 99.99,
    p: float = 2.4,
) -> Scales:
    """Scale and zero point by a method's name.

    Raises:
        ValueError: another name than `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"range={method}: allowed are {', '.join(METHODS)}")
    if method == "minmax" or values.is_meta:  # without values all have the same shapes
        return min_max(values, grid)
    if method == "percentile":
        return by_percentile(values, grid, percentile)
    return by_error(values, grid, 2.0 if method == "mse" else p)


def min_max(values: torch.Tensor, grid: Grid) -> Scales:
    """The smallest range that clips nothing."""
    values = values.float()
    return scales_of(values.amin(1, keepdim=True), values.amax(1, keepdim=True), grid)


def by_percentile(values: torch.Tensor, grid: Grid, percentile: float = 99.99) -> Scales:
    """The range that this percentage of the values stays below.

    On a symmetric grid of their magnitudes; on an asymmetric one at either end.
    """
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile}: must be over 50 and at most 100")
    share = percentile / 100
    values = values.float()
    if grid.symmetric:
        high = _quantile(values.abs(), share)
        return scales_of(-high, high, grid)
    return scales_of(_quantile(values, 1 - share), _quantile(values, share), grid)


def by_error(values: torch.Tensor, grid: Grid, p: float = 2.0) -> Scales:
    """The range with the least Σ|x − x̂|ᵖ, among `SHARES` of the full one; p = 2 is the MSE.

    On an asymmetric grid the upper end is searched first, then the lower one.
    """
    if not p > 0:
        raise ValueError(f"p={p}: must be over 0")
    values = values.float()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    if grid.symmetric:
        ranges = [(low * share, high * share) for share in SHARES]
        return scales_of(*_best(values, grid, p, ranges), grid)
    low, high = _best(values, grid, p, [(low, high * share) for share in SHARES])
    low, high = _best(values, grid, p, [(low * share, high) for share in SHARES])
    return scales_of(low, high, grid)


def scales_of(low: torch.Tensor, high: torch.Tensor, grid: Grid) -> Scales:
    """Scale and zero point of the grid that spans `low` to `high`, and zero in any case.

    Returns:
        Both float32 in the shape of `low`; the zero point, of whole numbers, is None on a
        symmetric grid. An empty range has the scale 1.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if grid.symmetric:
        scale = torch.maximum(low / grid.lowest, high / grid.highest)
        return _filled(scale), None
    scale = _filled((high - low) / (grid.highest - grid.lowest))
    zero_point = (grid.lowest - (low / scale).round()).clamp(grid.lowest, grid.highest)
    return scale, zero_point


def _best(
    values: torch.Tensor, grid: Grid, p: float, ranges: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row the range that errs least, the first of equals."""
    (best_low, best_high), least = ranges[0], None
    for low, high in ranges:
        error = values - fake_quantize(values, *scales_of(low, high, grid), grid)
        loss = error.abs().pow(p).sum(1, keepdim=True)
        if least is None:
            least = loss
        better = loss < least
        best_low = torch.where(better, low, best_low)
        best_high = torch.where(better, high, best_high)
        least = torch.minimum(least, loss)
    return best_low, best_high


def _filled(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > _SMALLEST, scale, torch.ones_like(scale))


def _quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    # torch.quantile refuses more than 2²⁴ values.
    place = share * (values.shape[1] - 1)
    ordered = values.sort(dim=1).values
    below = int(place)
    above = min(below + 1, values.shape[1] - 1)
    return torch.lerp(ordered[:, below, None], ordered[:, above, None], place - below)
