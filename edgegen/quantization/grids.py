"""Integer grids, and the one function that puts tensors on them.

A value x becomes the integer q = clip(round(x / s) + z, lowest, highest) and then ŷ = s·(q − z).
Integers are signed on every grid, so that up to 8 bits fit int8; an asymmetric grid reaches
elsewhere by its zero point z, a symmetric one has z = 0. Zero is always on the grid, as the padding
of convolutions needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BITS = (2, 3, 4, 5, 6, 7, 8, 16)


@dataclass(frozen=True)
class Grid:
    """All integers of some bits.

    Raises:
        ValueError: bits other than 2 to 8 or 16.
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: allowed are 2 to 8, and 16")

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest of torch's dtypes that holds its integers."""
        return torch.int8 if self.bits <= 8 else torch.int16


def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    """Integers of `x`, still as floats; gradients pass the rounding straight through.

    Args:
        x: any shape.
        scale, zero_point: of shapes that broadcast to it; no zero point stands for 0.
    """
    # The factor of torch's own kernels, which divide nowhere: so ties are decided as there.
    steps = _round(x * (1.0 / scale))
    if zero_point is not None:
        steps = steps + zero_point
    return steps.clamp(grid.lowest, grid.highest)


def dequantize(
    integers: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None
) -> torch.Tensor:
    """What integers stand for."""
    if zero_point is not None:
        integers = integers - zero_point
    return integers * scale


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    """`x` moved to the nearest points of the grid, in its own shape and dtype.

    The gradient of `x` is 1 inside the grid and 0 where it was clipped (straight-through
    estimator); that of `scale` is the one of LSQ (arXiv 1902.08153, equation 3): q − x/s inside,
    the clipped integer outside. It is computed in float32 whatever the dtype of `x`.

    Args:
        x: any shape.
        scale, zero_point: float32, of shapes that broadcast to it.
    """
    integers = quantize(x.float(), scale, zero_point, grid)
    return dequantize(integers, scale, zero_point).to(x.dtype)


def scale_gradient(scale: torch.Tensor, values: int, grid: Grid) -> torch.Tensor:
    """`scale` itself, whose gradient will be divided by √(values · highest).

    LSQ (arXiv 1902.08153, section 2.2): so that a scale learns at the pace of the weights.

    Args:
        values: how many tensor elements share one scale.
    """
    factor = (values * grid.highest) ** -0.5
    return scale.detach() + (scale - scale.detach()) * factor


def _round(x: torch.Tensor) -> torch.Tensor:
    if not x.requires_grad:
        return x.round()
    return x.round().detach() + (x - x.detach())  # exact: what is added is 0
