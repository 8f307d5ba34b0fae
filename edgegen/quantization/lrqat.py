"""Low-rank quantization-aware training (LR-QAT, arXiv 2406.06385).

Ŵ = s·clip(round(Φ0 + (α/r)·A·B)), where Φ0 = φ(W0/s0) stays as it is and A, B and s are learned.
Without A and B the scales alone are (PEQA, arXiv 2305.14152).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .grids import Grid, dequantize, quantize
from .lsq import LearnedScale
from .packing import packed_bytes
from .weights import IntegerWeight, spread

BASES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""Forms of Φ0. `int8` is fixed point with 8 − b bits behind the point: Q4.4 for weights of 4."""


class LowRankWeight(LearnedScale):
    """A layer's weight as rounded, frozen values and a low-rank update inside the rounding.

    Weights of convolutions count as the matrix (C_out, C_in·k²). Gradients pass the rounding
    straight through and are 0 where the grid clips; that of s is the clipped integer.

    Args:
        weight: W0, (C_out, …) float. It is not kept.
        scale: s0, float32 (1 or C_out, groups), where s begins.
        grid: symmetric.
        group: values that share a scale, or None.
        rank: r, at most the smaller side of the matrix; 0 learns the scales alone.
        base: form of Φ0, of `BASES`.
        alpha: α.

    Attributes:
        base: Φ0, (C_out, C_in·k²), or that times 2^(8−b) for `int8`.
        up: A, (C_out, r), which begins with zeros; None for rank 0.
        down: B, (r, C_in·k²), which begins as Kaiming's uniform; None for rank 0.

    Raises:
        ValueError: an unknown `base`, a grid that int8 does not hold, or a rank below 0.
    """

    base: torch.Tensor
    up: nn.Parameter | None
    down: nn.Parameter | None

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        grid: Grid,
        group: int | None = None,
        rank: int = 32,
        base: str = "int8",
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if base not in BASES:
            raise ValueError(f"base={base}: allowed are {', '.join(BASES)}")
        if base == "int8" and grid.bits > 8:
            raise ValueError(f"base=int8: does not hold weights of {grid.bits} bits; use float32")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise ValueError(f"rank={rank}: must be a whole number, 0 or more")
        self.grid, self.group, self.shape = grid, group, weight.shape
        self._begin(scale)
        rows = weight.detach().float().reshape(len(weight), -1)
        # The factor and its rounding are those of `quantize`, so that Φ0 in float32 rounds to what
        # rounding to nearest gives.
        steps = rows * (1.0 / spread(self.start, rows.shape[1], group))
        if base == "int8":
            steps = (steps.clamp(grid.lowest, grid.highest) * self._unit).round()
        self.register_buffer("base", steps.to(BASES[base]), persistent=False)
        rank = min(rank, *rows.shape)
        self.factor = alpha / rank if rank else 0.0
        self.up = self.down = None
        if rank:
            self.up = nn.Parameter(rows.new_zeros(len(rows), rank))
            self.down = nn.Parameter(rows.new_empty(rank, rows.shape[1]))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as LoRA's

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def stored_bytes(self) -> int:
        """Of what `fused` gives."""
        return packed_bytes(self.base.numel(), self.bits) + self.start.nbytes

    def integers(self) -> torch.Tensor:
        """clip(round(Φ0 + (α/r)·A·B)), still as floats (C_out, C_in·k²)."""
        steps = self.base.float()
        if self.base.dtype == torch.int8:
            steps = steps / self._unit
        if self.up is not None and self.down is not None:
            # Autocast would add up the product in half precision, while `fused` would not.
            with torch.autocast(steps.device.type, enabled=False):
                steps = torch.addmm(steps, self.up, self.down, alpha=self.factor)
        return quantize(steps, steps.new_ones(()), None, self.grid)

    def forward(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        scale = spread(self.scale, self.base.shape[1], self.group)
        return dequantize(self.integers(), scale, None).to(dtype).view(self.shape)

    @torch.no_grad()
    def fused(self) -> IntegerWeight:
        """The integers and scales that stand for the same values."""
        integers = self.integers().to(self.grid.dtype).view(self.shape)
        return IntegerWeight(integers, self.scale, None, self.grid, self.group)

    @property
    def _unit(self) -> int:
        """Steps of the fixed point in one of the grid."""
        return 2 ** (8 - self.grid.bits)

    def extra_repr(self) -> str:
        rank = 0 if self.up is None else self.up.shape[1]
        return f"{self.bits} bits, rank {rank}, Φ0 in {str(self.base.dtype).removeprefix('torch.')}"
