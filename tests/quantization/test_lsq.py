"""LSQ against torch's own learnable fake quantization, by channel and for whole tensors."""

from __future__ import annotations

import pytest
import torch

from edgegen.quantization.grids import Grid
from edgegen.quantization.lsq import LearnedQuantizer, LearnedWeight
from edgegen.quantization.quantizers import StaticQuantizer


def weight() -> torch.Tensor:
    made = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    made.view(-1)[:3] = torch.tensor([9.0, -9.0, 0.0])  # clipped on both sides
    return made


def upstream(like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_by_channel_are_torchs(bits: int) -> None:
    grid, scale = Grid(bits), torch.linspace(0.05, 0.4, 6).view(6, 1)
    stored = LearnedWeight(weight(), scale, grid)
    own = stored()
    other, other_scale = weight().requires_grad_(), scale.flatten().requires_grad_()
    # Torch multiplies the gradient by this, as LSQ does: 45 values share a scale.
    factor = (45 * grid.highest) ** -0.5
    theirs = torch._fake_quantize_learnable_per_channel_affine(
        other, other_scale, torch.zeros(6), 0, grid.lowest, grid.highest, factor
    )
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)
    (own * upstream(own)).sum().backward()
    (theirs * upstream(own)).sum().backward()
    torch.testing.assert_close(stored.weight.grad, other.grad)
    found = (stored.share.grad / stored.start).flatten()  # as s = s0·g
    torch.testing.assert_close(found, other_scale.grad, rtol=1e-4, atol=1e-5)
    assert not stored.weight.grad.flatten()[:2].any()  # outside the grid


def test_groups_are_channels_of_their_own() -> None:
    """45 columns in groups of 15: the same as a weight of 18 rows, but for its shape."""
    grid, scale = Grid(3), torch.linspace(0.1, 0.5, 18)
    grouped = LearnedWeight(weight(), scale.view(6, 3), grid, 15)
    plain = LearnedWeight(weight().view(18, 15), scale.view(18, 1), grid)
    assert torch.equal(grouped().view(18, 15), plain())
    made = upstream(plain())
    (grouped().view(18, 15) * made).sum().backward()
    (plain() * made).sum().backward()
    torch.testing.assert_close(grouped.share.grad.view(18, 1), plain.share.grad)


def test_activations_are_torchs() -> None:
    """The scale of a whole tensor, its zero point staying where calibration put it."""
    grid = Grid(4, symmetric=False)
    static = StaticQuantizer(grid, torch.tensor([[0.11]]), torch.tensor([[3.0]]))
    quantizer = LearnedQuantizer(static)
    share = quantizer.share
    assert [id(p) for p in quantizer.parameters()] == [id(share)]
    assert torch.equal(quantizer(weight()), static(weight()))
    x, other = weight().requires_grad_(), weight().requires_grad_()
    own = quantizer(x)
    scale, zero = torch.tensor([0.11], requires_grad=True), torch.tensor([3.0])
    theirs = torch._fake_quantize_learnable_per_tensor_affine(
        other, scale, zero, grid.lowest, grid.highest, 1.0
    )
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)
    (own * upstream(own)).sum().backward()
    (theirs * upstream(own)).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(share.grad.flatten(), 0.11 * scale.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        share += 0.5
        moved = quantizer(x)
    settled = quantizer.settled()
    assert not list(settled.parameters())
    assert settled.scale.item() == pytest.approx(1.5 * 0.11)
    assert torch.equal(settled(x), moved)


def test_a_step_is_a_share_of_each_scale() -> None:
    """Adam's first step moves every parameter by the learning rate."""
    scale = torch.tensor([[0.4], [1e-4], [3.0], [0.1], [0.2], [0.3]])
    stored = LearnedWeight(weight(), scale, Grid(4))
    optimizer = torch.optim.Adam([stored.share], lr=0.01)
    (stored() * upstream(weight())).sum().backward()
    optimizer.step()
    ratio = stored.scale.detach() / scale
    torch.testing.assert_close((ratio - 1).abs(), torch.full((6, 1), 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("group", [None, 8])
def test_fused_to_the_bit(group: int | None) -> None:
    groups = 1 if group is None else 6
    scale = 0.1 + torch.rand(6, groups, generator=torch.Generator().manual_seed(2))
    stored = LearnedWeight(weight(), scale, Grid(4), group)
    fused = stored.fused()
    assert torch.equal(fused(), stored())
    assert fused.stored_bytes == stored.stored_bytes
    assert fused.integers.dtype == torch.int8
