"""GPTQ: the loss it lowers, and a loop written out as in the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgegen.quantization.gptq import DAMPING, Hessian, round_by_gptq
from edgegen.quantization.grids import Grid
from edgegen.quantization.weights import IntegerWeight, round_to_nearest, weight_scales


def inputs(rows: int, columns: int) -> torch.Tensor:
    """Correlated, as activations are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) @ mixing


def test_hessian_of_linear() -> None:
    x = inputs(40, 6).view(4, 10, 6)
    hessian = Hessian(nn.Linear(6, 3))
    assert not hessian.reached
    hessian.see(x[:1])
    hessian.see(x[1:])
    flat = x.view(-1, 6).double()
    torch.testing.assert_close(hessian.matrix, (2 * flat.T @ flat / 40).float())


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": "same"},
        {"padding_mode": "circular", "padding": 1},
    ],
)
def test_hessian_of_convolution(options: dict) -> None:
    """tr(W·H·Wᵀ) is twice the mean square of what a convolution gives."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False, **options)
    x = torch.randn(2, 3, 6, 6)
    hessian = Hessian(conv)
    hessian.see(x)
    out = conv(x)
    expected = 2 * out.square().sum() / (out.numel() / 4)
    w = conv.weight.view(4, -1)
    torch.testing.assert_close((w @ hessian.matrix @ w.T).trace(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [None, 48])
def test_loss_falls(group: int | None) -> None:
    x, grid = inputs(400, 150), Grid(3)
    w = torch.randn(8, 150, generator=torch.Generator().manual_seed(1))
    hessian = 2 * x.T @ x / len(x)
    scales = weight_scales(w, grid, "channel" if group is None else "group", group, "minmax")

    def loss(integers: torch.Tensor) -> float:
        error = w - IntegerWeight(integers, *scales, grid, group)()
        return float((error @ hessian @ error.T).trace())

    nearest = loss(round_to_nearest(w, scales, grid, group))
    assert loss(round_by_gptq(w, hessian, scales, grid, group)) < 0.7 * nearest


def test_is_optimal_brain_quantization_in_order() -> None:
    """Column by column: round, then move the rest to where the loss is least (OBQ, eq. 2-3)."""
    x, grid = inputs(60, 7), Grid(3)
    w = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    hessian = 2 * x.T @ x / len(x)
    scales = weight_scales(w, grid, "channel", None, "minmax")
    own = round_by_gptq(w, hessian, scales, grid, None).double()
    damped = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(7)
    rest, scale = w.double().clone(), scales[0][:, 0].double()
    for column in range(7):
        quantized = (rest[:, column] / scale).round().clamp(-4, 3)
        assert torch.equal(own[:, column], quantized)
        inverse = damped[column:, column:].inverse()
        error = (rest[:, column] - quantized * scale) / inverse[0, 0]
        rest[:, column:] -= error[:, None] * inverse[0]


def test_inputs_that_are_always_zero() -> None:
    x = inputs(50, 6)
    x[:, 2] = 0
    w = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    scales = weight_scales(w, Grid(4), "channel", None, "minmax")
    out = round_by_gptq(w, x.T @ x, scales, Grid(4), None)
    assert torch.equal(out[:, 2], round_to_nearest(w, scales, Grid(4), None)[:, 2])
    with pytest.raises(ValueError, match="not finite"):
        round_by_gptq(w, x.T @ x * float("nan"), scales, Grid(4), None)
