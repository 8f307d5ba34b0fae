"""LR-QAT against formulas written out: Ŵ = s·clip(round(Φ0 + (α/r)·A·B)), and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgegen.quantization.grids import Grid
from edgegen.quantization.lrqat import LowRankWeight
from edgegen.quantization.weights import IntegerWeight, round_to_nearest, weight_scales

ROWS, COLUMNS = 12, 45


def weight() -> torch.Tensor:
    return torch.randn(ROWS, 5, 3, 3, generator=torch.Generator().manual_seed(0))


def scales(grid: Grid, group: int | None = None) -> torch.Tensor:
    """Narrow ones, which clip some values."""
    found, _ = weight_scales(weight(), grid, "group" if group else "channel", group, "mse")
    return found


def made(bits: int = 4, group: int | None = None, **options: Any) -> LowRankWeight:
    torch.manual_seed(1)
    grid = Grid(bits)
    return LowRankWeight(weight(), scales(grid, group), grid, group, **{"rank": 4, **options})


def trained(**options: Any) -> LowRankWeight:
    """As after some steps: A is not 0 any more and moves values over several steps of the grid."""
    stored = made(**options)
    with torch.no_grad():
        stored.up.normal_(std=20.0)
        stored.share *= 1.07
    return stored


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 8])
def test_begins_as_rounding_to_nearest(bits: int, group: int | None) -> None:
    grid = Grid(bits)
    found = scales(grid, group)
    integers = round_to_nearest(weight(), (found, None), grid, group)
    nearest = IntegerWeight(integers, found, None, grid, group)
    stored = made(bits, group, base="float32")
    assert not stored.up.any()
    assert torch.equal(stored(), nearest())


def test_each_form_of_phi() -> None:
    """float32 as it is, bfloat16 rounded, int8 with 8 − b bits behind the point."""
    for bits in (2, 3, 4, 8):
        grid = Grid(bits)
        phi = (weight().double() / scales(grid).double().view(-1, 1, 1, 1)).view(ROWS, COLUMNS)
        plain = made(bits, base="float32").base
        torch.testing.assert_close(plain.double(), phi, rtol=1e-6, atol=0)
        half = made(bits, base="bfloat16").base
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), phi, rtol=2**-8, atol=0)
        fixed, unit = made(bits, base="int8").base, 2 ** (8 - bits)
        assert fixed.dtype == torch.int8
        error = fixed.double() / unit - phi.clamp(grid.lowest, grid.highest)
        assert error.abs().max() <= 0.5 / unit + 1e-5
        assert len(fixed.unique()) > min(100, 2**bits)


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
def test_forward_and_gradients_in_closed_form(base: str) -> None:
    stored, alpha, rank, bits = trained(base=base, alpha=2.0), 2.0, 4, 4
    phi = stored.base.double() / (2 ** (8 - bits) if base == "int8" else 1)
    a, b = stored.up.detach().double(), stored.down.detach().double()
    steps = phi + alpha / rank * a @ b
    rounded = steps.round()
    integers = rounded.clamp(-8, 7)
    inside = (rounded >= -8) & (rounded <= 7)
    assert 0 < inside.float().mean() < 1
    scale = stored.scale.detach().double()
    out = stored()
    assert out.shape == weight().shape
    torch.testing.assert_close(out.double().view(ROWS, COLUMNS), scale * integers)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out * upstream).sum().backward()
    given = upstream.double().view(ROWS, COLUMNS)
    # ∂Ŵ/∂s = W_int, where s = s0·g; straight through the rounding, nothing where the grid clips.
    expected = (given * integers).sum(1, keepdim=True)
    found = stored.share.grad.double() / stored.start
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    through = given * scale * inside * alpha / rank
    torch.testing.assert_close(stored.up.grad.double(), through @ b.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stored.down.grad.double(), a.T @ through, rtol=1e-4, atol=1e-4)
    assert not stored.base.requires_grad


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_fused_to_the_bit(base: str, group: int | None, rank: int) -> None:
    stored = trained(base=base, group=group, rank=rank) if rank else made(4, group, rank=0)
    fused = stored.fused()
    assert torch.equal(fused(), stored())
    assert fused.stored_bytes == stored.stored_bytes
    with torch.autocast("cpu", torch.bfloat16):  # training in half precision rounds as well
        assert torch.equal(stored(), fused())
    assert torch.equal(fused(torch.bfloat16), stored(torch.bfloat16))


def test_scales_alone_are_rank_zero() -> None:
    stored = made(rank=0, base="float32")
    assert [name for name, _ in stored.named_parameters()] == ["share"]
    begun = made(base="float32")
    assert torch.equal(stored(), begun())


def test_the_rank_is_at_most_that_of_the_matrix() -> None:
    stored = made(rank=100)
    assert stored.up.shape == (ROWS, ROWS)
    assert stored.down.shape == (ROWS, COLUMNS)
    assert stored.factor == 1 / ROWS
    limit = COLUMNS**-0.5  # Kaiming's uniform as LoRA has it
    assert 0.9 * limit < stored.down.abs().max() <= limit


def test_what_is_kept() -> None:
    stored = made()
    assert set(stored.state_dict()) == {"share", "up", "down"}
    stored.persist()
    assert set(stored.state_dict()) == {"share", "up", "down", "base", "start"}
    other = LowRankWeight(torch.zeros_like(weight()), stored.scale, Grid(4), rank=4)
    other.persist()
    other.load_state_dict(stored.state_dict())
    assert torch.equal(other(), stored())
    half = made(base="bfloat16").double()
    assert half.base.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "float16"}, "allowed are float32, bfloat16, int8"),
        ({"bits": 16}, "does not hold weights of 16 bits"),
        ({"rank": -1}, "rank=-1: must be a whole number"),
    ],
)
def test_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(**options)
