"""Grids against torch's own fake quantization, its learnable one included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgegen.quantization.grids import (
    BITS,
    Grid,
    dequantize,
    fake_quantize,
    quantize,
    scale_gradient,
)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    made.view(-1)[:3] = torch.tensor([40.0, -40.0, 0.0])  # clipped on both sides
    return made


@pytest.mark.parametrize("bits", BITS)
def test_ends(bits: int) -> None:
    grid = Grid(bits)
    assert (grid.lowest, grid.highest) == (-(2**bits) // 2, 2**bits // 2 - 1)
    assert torch.iinfo(grid.dtype).min <= grid.lowest
    assert torch.iinfo(grid.dtype).max >= grid.highest


@pytest.mark.parametrize("bits", [1, 9, 32, True])
def test_refuses_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="allowed are 2 to 8, and 16"):
        Grid(bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero", [None, 1])
def test_per_tensor_is_torchs(bits: int, zero: int | None) -> None:
    x, grid = values(64, 9), Grid(bits, zero is None)
    scale = torch.tensor([0.07])
    point = None if zero is None else torch.tensor([float(zero)])
    own = fake_quantize(x, scale, point, grid)
    theirs = torch.fake_quantize_per_tensor_affine(
        x, scale, torch.tensor([zero or 0]).int(), grid.lowest, grid.highest
    )
    assert torch.equal(own, theirs)
    assert torch.equal(dequantize(quantize(x, scale, point, grid), scale, point), own)
    assert len(own.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_per_channel_is_torchs(bits: int) -> None:
    grid = Grid(bits, symmetric=False)
    x = values(5, 7, 3, 3).requires_grad_()
    other = x.detach().clone().requires_grad_()
    scale = torch.linspace(0.05, 0.5, 7)
    point = torch.tensor([0, 1, -1, 0, grid.lowest, grid.highest, 1])
    own = fake_quantize(x, scale.view(-1, 1, 1), point.float().view(-1, 1, 1), grid)
    theirs = torch.fake_quantize_per_channel_affine(
        other, scale, point.int(), 1, grid.lowest, grid.highest
    )
    assert torch.equal(own, theirs)
    weights = values(*x.shape, seed=1)
    (own * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("factor", [1.0, 0.125])
def test_learned_scales_are_torchs(bits: int, factor: float) -> None:
    """Gradients of input, scale and zero point, for the whole tensor and by channel."""
    grid = Grid(bits, symmetric=False)
    limits = (grid.lowest, grid.highest, factor)
    upstream = values(6, 50, seed=1)
    for channels in (1, 6):
        leaves = []
        for _ in range(2):
            x = values(6, 50)
            scale = torch.linspace(0.1, 0.3, channels)
            # Torch's kernel for whole tensors rounds negative zero points wrongly.
            point = torch.linspace(1, -1, channels).round()
            leaves.append([each.requires_grad_() for each in (x, scale, point)])
        (x, scale, point), (x2, scale2, point2) = leaves
        own = fake_quantize(x, scale.view(-1, 1), point.view(-1, 1), grid)
        if channels == 1:
            theirs = torch._fake_quantize_learnable_per_tensor_affine(x2, scale2, point2, *limits)
        else:
            theirs = torch._fake_quantize_learnable_per_channel_affine(
                x2, scale2, point2, 0, *limits
            )
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)
        (own * upstream).sum().backward()
        (theirs * upstream).sum().backward()
        torch.testing.assert_close(x.grad, x2.grad)
        torch.testing.assert_close(factor * scale.grad, scale2.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(factor * point.grad, point2.grad, rtol=1e-4, atol=1e-4)


def test_gradient_of_scale_in_closed_form() -> None:
    """LSQ, equation 3: q − x/s inside the grid, the clipped integer outside."""
    grid, scale = Grid(4), torch.tensor([0.5], requires_grad=True)
    for x, expected in ((0.6, 1 - 1.2), (-0.9, -2 + 1.8), (9.0, 7.0), (-9.0, -8.0)):
        scale.grad = None
        fake_quantize(torch.tensor([x]), scale, None, grid).sum().backward()
        assert scale.grad is not None
        assert float(scale.grad) == pytest.approx(expected, abs=1e-6)


def test_scale_gradient() -> None:
    """The scale itself, with a gradient divided by √(N · highest)."""
    scale = torch.tensor([0.3, 0.7], requires_grad=True)
    out = scale_gradient(scale, 25, Grid(3))
    assert torch.equal(out, scale)
    out.sum().backward()
    torch.testing.assert_close(scale.grad, torch.full((2,), (25 * 3) ** -0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: Any) -> None:
    x, grid, scale = values(100).to(dtype), Grid(8), torch.tensor([0.03])
    out = fake_quantize(x, scale, None, grid)
    assert out.dtype == dtype
    assert torch.equal(out, fake_quantize(x.float(), scale, None, grid).to(dtype))
