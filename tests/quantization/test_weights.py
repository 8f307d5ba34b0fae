"""Integer weights against formulas written out."""

from __future__ import annotations

import pytest
import torch

from edgegen.quantization.grids import Grid
from edgegen.quantization.weights import IntegerWeight, round_to_nearest, weight_scales


def weight() -> torch.Tensor:
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_scale_serves_its_values(granularity: str, symmetric: bool, bits: int) -> None:
    """Every group of a row, quantized by itself by torch: 45 columns in groups of 8, 5 left."""
    w, grid = weight(), Grid(bits, symmetric)
    group = 8 if granularity == "group" else None
    scales = weight_scales(w, grid, granularity, group, "minmax")
    stored = IntegerWeight(round_to_nearest(w, scales, grid, group), *scales, grid, group)
    rows = w.view(1, -1) if granularity == "tensor" else w.view(6, -1)
    expected = []
    for row in rows:
        pieces = row.split(group or len(row))
        assert granularity != "group" or len(pieces) == 6
        for piece in pieces:
            low, high = min(piece.min().item(), 0.0), max(piece.max().item(), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = grid.lowest - round(low / scale)
            if symmetric:
                scale, zero = max(low / grid.lowest, high / grid.highest), 0
            done = torch.fake_quantize_per_tensor_affine(
                piece, scale, zero, grid.lowest, grid.highest
            )
            expected.append(done)
    torch.testing.assert_close(stored().flatten(), torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert stored().shape == w.shape
    count = {"tensor": 1, "channel": 6, "group": 36}[granularity]
    each = 4 if symmetric else 5  # float32, and an int8 zero point
    assert stored.stored_bytes == -(-6 * 45 * bits // 8) + each * count


def test_scales_keep_their_precision() -> None:
    w, grid = weight(), Grid(8)
    scales = weight_scales(w, grid, "channel", None, "minmax")
    stored = IntegerWeight(round_to_nearest(w, scales, grid, None), *scales, grid)
    expected = stored()
    stored.half()
    assert stored.scale.dtype == torch.float32
    assert torch.equal(stored(), expected)
    assert torch.equal(stored(torch.float16), expected.half())
