"""Weights kept as integers with scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .grids import Grid, dequantize, quantize
from .packing import pack, packed_bytes, unpack
from .quantizers import Precise
from .ranges import Scales, find_range

GRANULARITIES = ("tensor", "channel", "group")


class IntegerWeight(Precise):
    """A layer's weight as integers; called, it gives what they stand for.

    Scales are shared by the whole weight, by an output channel, or by `group` values in a row of
    an output channel, whose weights count as the matrix (C_out, C_in·k²); a last group may be
    shorter.

    Args:
        integers: in the weight's shape, (C_out, C_in) or (C_out, C_in, k, k).
        scale: float32 (1 or C_out, groups).
        zero_point: whole numbers in the shape of `scale`, or None.
        grid: of the integers.
        group: values that share a scale, or None.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None

    def __init__(
        self,
        integers: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        grid: Grid,
        group: int | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.group = grid, group
        self.register_buffer("integers", integers.to(grid.dtype), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        point = None if zero_point is None else zero_point.to(grid.dtype)
        self.register_buffer("zero_point", point, persistent=False)

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def stored_bytes(self) -> int:
        """Of the packed integers, the scales and the zero points."""
        points = 0 if self.zero_point is None else self.zero_point.nbytes
        return packed_bytes(self.integers.numel(), self.bits) + self.scale.nbytes + points

    def forward(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        columns = self.integers[0].numel()
        point = None
        if self.zero_point is not None:
            point = spread(self.zero_point.float(), columns, self.group)
        scale = spread(self.scale, columns, self.group)
        matrix = self.integers.reshape(len(self.integers), columns).float()
        return dequantize(matrix, scale, point).to(dtype).view(self.integers.shape)

    def persist(self) -> None:
        """From now on part of the state_dict, packed; the integers are a parameter there."""
        integers = self.integers
        del self.integers
        # A parameter, for whoever counts a model's.
        self.integers = nn.Parameter(integers, requires_grad=False)
        super().persist()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        name = f"{prefix}integers"
        if name in destination:
            destination[name] = pack(destination[name].detach(), self.bits)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        name = f"{prefix}integers"
        try:
            if name in state_dict:
                shape = self.integers.shape
                state_dict[name] = unpack(state_dict[name], self.bits, shape)
        except ValueError as error:
            rest[-1].append(f"{name}: {error}")
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, local, strict, missing, *rest)

    def extra_repr(self) -> str:
        shape = "×".join(map(str, self.integers.shape))
        return f"{self.bits} bits, {shape}, {'×'.join(map(str, self.scale.shape))} scales"


def weight_scales(
    weight: torch.Tensor,
    grid: Grid,
    granularity: str,
    group: int | None,
    method: str,
    **options: float,
) -> Scales:
    """Scales and zero points (1 or C_out, groups) of a weight (C_out, …); see `find_range`."""
    rows = weight.detach().float().reshape(len(weight), -1)
    if granularity == "tensor":
        return find_range(rows.reshape(1, -1), grid, method, **options)
    if granularity == "channel" or group is None:
        return find_range(rows, grid, method, **options)
    even = rows.shape[1] // group * group
    found = []
    if even:
        scale, point = find_range(rows[:, :even].reshape(-1, group), grid, method, **options)
        shape = (len(rows), even // group)
        found.append((scale.view(shape), None if point is None else point.view(shape)))
    if even < rows.shape[1]:
        found.append(find_range(rows[:, even:], grid, method, **options))
    scales, points = zip(*found, strict=True)
    return torch.cat(scales, 1), None if points[0] is None else torch.cat(points, 1)


def round_to_nearest(
    weight: torch.Tensor, scales: Scales, grid: Grid, group: int | None
) -> torch.Tensor:
    """Integers in the shape of `weight`, in the grid's dtype."""
    rows = weight.detach().float().reshape(len(weight), -1)
    scale, point = (None if t is None else spread(t, rows.shape[1], group) for t in scales)
    assert scale is not None
    return quantize(rows, scale, point, grid).to(grid.dtype).view(weight.shape)


def spread(scales: torch.Tensor, columns: int, group: int | None) -> torch.Tensor:
    """(rows, groups) → what broadcasts to (C_out, columns)."""
    if group is None or scales.shape[1] == 1:
        return scales
    return scales.repeat_interleave(group, dim=1)[:, :columns]
