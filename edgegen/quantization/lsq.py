"""LSQ (arXiv 1902.08153): weights in full precision that are rounded at every call."""

from __future__ import annotations

import torch
from torch import nn

from .grids import Grid, fake_quantize, quantize, scale_gradient
from .packing import packed_bytes
from .quantizers import Precise, StaticQuantizer
from .weights import IntegerWeight, spread


class LearnedScale(Precise):
    """What has scales s = s0·g, of which the shares g are learned.

    So one learning rate suits them all: a step of Adam is a share of each scale, and those of
    8 bits are a hundredth of those of 2.

    Attributes:
        start: s0, float32.
        share: g, in the shape of s0, 1 at first.
    """

    start: torch.Tensor
    share: nn.Parameter

    def _begin(self, scale: torch.Tensor) -> None:
        self.register_buffer("start", scale.detach().float().clone(), persistent=False)
        self.share = nn.Parameter(torch.ones_like(self.start))

    @property
    def scale(self) -> torch.Tensor:
        """As it is now."""
        return self.start * self.share


class LearnedWeight(LearnedScale):
    """A layer's weight W, of which a call gives s·clip(round(W / s)); W and s are learned.

    Gradients are those of LSQ: straight through to W within the grid, 0 where it is clipped;
    q − W/s to s within, the clipped integer outside, divided by √(values of a scale · highest).

    Args:
        weight: (C_out, …) float, which is not copied.
        scale: float32 (1 or C_out, groups).
        grid: symmetric.
        group: values that share a scale, or None.
    """

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, grid: Grid, group: int | None = None
    ) -> None:
        super().__init__()
        self.grid, self.group = grid, group
        self.weight = nn.Parameter(weight.detach())
        self._begin(scale)

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def stored_bytes(self) -> int:
        """Of what `fused` gives."""
        return packed_bytes(self.weight.numel(), self.bits) + self.start.nbytes

    def forward(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        values = max(1, self.weight.numel() // self.start.numel())
        scale = self._spread(scale_gradient(self.scale, values, self.grid))
        return fake_quantize(self._rows(), scale, None, self.grid).to(dtype).view_as(self.weight)

    @torch.no_grad()
    def fused(self) -> IntegerWeight:
        """The integers and scales that stand for the same values."""
        integers = quantize(self._rows(), self._spread(self.scale), None, self.grid)
        shaped = integers.to(self.grid.dtype).view_as(self.weight)
        return IntegerWeight(shaped, self.scale, None, self.grid, self.group)

    def _rows(self) -> torch.Tensor:
        return self.weight.float().reshape(len(self.weight), -1)

    def _spread(self, scale: torch.Tensor) -> torch.Tensor:
        return spread(scale, self.weight[0].numel(), self.group)

    def extra_repr(self) -> str:
        return f"{self.bits} bits, learned by LSQ"


class LearnedQuantizer(LearnedScale, StaticQuantizer):  # type: ignore[override]
    """A static quantizer of activations whose scales are learned; its zero points stay.

    The gradient is that of LSQ, not divided by anything, as Adam's steps do not depend on its size.

    Args:
        quantizer: where the scales begin.
    """

    def __init__(self, quantizer: StaticQuantizer) -> None:
        Precise.__init__(self)
        self.grid, self.axis, self.split = quantizer.grid, quantizer.axis, quantizer.split
        self.period = quantizer.period
        self._begin(quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point, persistent=False)

    def settled(self) -> StaticQuantizer:
        """With the scales as they are now."""
        scale = self.scale.detach()
        kept = (self.axis, self.split, self.period)
        return StaticQuantizer(self.grid, scale, self.zero_point, *kept)
