"""GPTQ (arXiv 2210.17323): rounding whose error later columns make good."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .grids import Grid, dequantize, quantize
from .ranges import Scales
from .weights import spread

BLOCK = 128
DAMPING = 0.01


class Hessian:
    """H = 2·E[xxᵀ] over the inputs of a layer: (K, K) with K = C_in·k², float32.

    Args:
        layer: `nn.Linear`, or `nn.Conv2d` with one group, whose windows count as inputs.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self._layer: Any = layer
        columns = layer.weight[0].numel()
        self.matrix = torch.zeros(columns, columns, device=layer.weight.device)
        self._inputs = 0

    @property
    def reached(self) -> bool:
        return self._inputs > 0

    @torch.no_grad()
    def see(self, x: torch.Tensor) -> None:
        """Take note of what the layer is called with."""
        rows = self._rows(x.detach().float())
        self._inputs += len(rows)
        self.matrix += (2 * rows.T @ rows - len(rows) * self.matrix) / self._inputs

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        layer = self._layer
        if isinstance(layer, nn.Linear):
            return x.reshape(-1, x.shape[-1])
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
            padding: Any = 0
        else:
            padding = layer.padding
        windows = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
        return windows.transpose(1, 2).reshape(-1, windows.shape[1])


@torch.no_grad()
def round_by_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scales: Scales, grid: Grid, group: int | None
) -> torch.Tensor:
    """Integers with less tr((W−Ŵ)·H·(W−Ŵ)ᵀ) than those of rounding to nearest.

    Args:
        weight: (C_out, …) with K values an output channel.
        hessian: (K, K).
        scales: scale and zero point, (1 or C_out, groups).
        group: values in a group, or None.

    Returns:
        Integers in the shape of `weight`, in the grid's dtype.

    Raises:
        ValueError: a Hessian that is not finite.
    """
    rows = weight.detach().float().reshape(len(weight), -1).clone()
    columns = rows.shape[1]
    scale, point = (None if t is None else spread(t, columns, group) for t in scales)
    assert scale is not None
    scale = scale.expand(len(rows), columns)
    point = None if point is None else point.expand(len(rows), columns)
    feedback = feedback_of(damped(hessian))
    integers = torch.empty_like(rows)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(rows[:, start:end])
        for column in range(start, end):
            here = slice(column, column + 1)
            s, z = scale[:, here], None if point is None else point[:, here]
            integers[:, here] = quantize(rows[:, here], s, z, grid)
            error = rows[:, here] - dequantize(integers[:, here], s, z)
            error = error / feedback[column, column]
            rows[:, here.stop : end] -= error * feedback[column, here.stop : end]
            errors[:, column - start] = error[:, 0]
        rows[:, end:] -= errors @ feedback[start:end, end:]
    return integers.to(grid.dtype).view(weight.shape)


def damped(hessian: torch.Tensor) -> torch.Tensor:
    """With a hundredth of its mean diagonal added to it, float64.

    Raises:
        ValueError: it is not finite.
    """
    if not hessian.isfinite().all():
        raise ValueError("GPTQ: calibration met values that are not finite")
    found = hessian.to(torch.float64, copy=True)
    diagonal = found.diagonal()
    # Inputs that are always 0 get a unit of their own: they have no say in any other column.
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMPING * diagonal.mean()
    return found


def feedback_of(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian, float32."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    return torch.linalg.cholesky(inverse, upper=True).float()
