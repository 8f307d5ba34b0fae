"""Ranges against torch's observers, numpy's percentiles and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

from edgegen.quantization.grids import Grid, fake_quantize
from edgegen.quantization.ranges import (
    METHODS,
    SHARES,
    by_error,
    by_percentile,
    find_range,
    min_max,
    scales_of,
)


def rows(seed: int = 0) -> torch.Tensor:
    made = torch.randn(4, 400, generator=torch.Generator().manual_seed(seed))
    made[1] = made[1].abs()
    made[2] *= 1e-6
    made[3, 0] = 30.0
    return made


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_min_max_is_torchs(bits: int) -> None:
    grid, x = Grid(bits, symmetric=False), rows()[[0, 1, 3]]
    observer = PerChannelMinMaxObserver(
        dtype=torch.qint8,
        qscheme=torch.per_channel_affine,
        quant_min=grid.lowest,
        quant_max=grid.highest,
    )
    observer(x)
    scale, point = observer.calculate_qparams()
    own_scale, own_point = min_max(x, grid)
    torch.testing.assert_close(own_scale[:, 0], scale)
    assert own_point is not None
    assert torch.equal(own_point[:, 0], point.float())
    whole = MinMaxObserver(quant_min=0, quant_max=255)
    whole(x)
    if bits == 8:
        torch.testing.assert_close(
            min_max(x.view(1, -1), grid)[0].flatten(), whole.calculate_qparams()[0]
        )


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_min_max_clips_nothing_and_no_smaller_scale_does(bits: int, symmetric: bool) -> None:
    grid, x = Grid(bits, symmetric), rows()
    scale, point = min_max(x, grid)
    slack = 1 + 1e-4 if symmetric else 2  # the zero point is rounded, half a step at most
    error = (fake_quantize(x, scale, point, grid) - x).abs()
    assert (error <= scale / 2 * slack).all()
    if symmetric:
        tight = (fake_quantize(x, scale * 0.5, point, grid) - x).abs().amax(1)
        assert (tight > scale[:, 0] * 0.25).all()


def test_zero_stays_zero() -> None:
    for symmetric, method in itertools.product((True, False), METHODS):
        grid = Grid(4, symmetric)
        x = torch.linspace(3.0, 9.0, 50)[None]
        scale, point = find_range(x, grid, method)
        assert fake_quantize(torch.zeros(1), scale, point, grid).item() == 0.0


def test_empty_range() -> None:
    for symmetric in (True, False):
        grid = Grid(8, symmetric)
        scale, point = min_max(torch.zeros(1, 5), grid)
        assert scale.item() == 1.0
        assert not fake_quantize(torch.zeros(1, 3), scale, point, grid).any()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 100.0])
def test_percentile_is_numpys(percentile: float) -> None:
    x = rows()
    grid = Grid(8, symmetric=False)
    low = np.percentile(x.numpy(), 100 - percentile, axis=1)
    high = np.percentile(x.numpy(), percentile, axis=1)
    expected = scales_of(torch.tensor(low), torch.tensor(high), grid)
    found = by_percentile(x, grid, percentile)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own[:, 0], theirs, rtol=1e-3, atol=1e-12)
    high = np.percentile(x.abs().numpy(), percentile, axis=1)
    expected = scales_of(torch.tensor(-high), torch.tensor(high), Grid(8))
    found = by_percentile(x, Grid(8), percentile)
    torch.testing.assert_close(found[0][:, 0], expected[0], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
def test_error_is_least_among_all_shares(p: float) -> None:
    grid, x = Grid(3), rows()
    scale, _ = by_error(x, grid, p)

    def loss(row: int, scale: torch.Tensor) -> float:
        out = fake_quantize(x[row], scale, None, grid)
        return float((out - x[row]).abs().pow(p).sum())

    for row in range(len(x)):
        tried = []
        for share in SHARES:
            ends = scales_of(x[row].min() * share, x[row].max() * share, grid)
            tried.append(loss(row, ends[0].view(1)))
        assert loss(row, scale[row]) == pytest.approx(min(tried), rel=1e-5)
        if row < 3:  # without outliers
            assert min(tried) < tried[0]  # clipping pays


def test_error_of_asymmetric_range() -> None:
    """Close to the best of all pairs of shares, and better than no clipping."""
    grid = Grid(4, symmetric=False)
    x = torch.nn.functional.silu(3 * rows()[:1])
    losses = {}
    for below, above in itertools.product(SHARES, SHARES):
        ends = scales_of(x.min() * below, x.max() * above, grid)
        losses[below, above] = float((fake_quantize(x, *ends, grid) - x).square().sum())
    own = float((fake_quantize(x, *by_error(x, grid), grid) - x).square().sum())
    assert own < losses[1.0, 1.0]
    assert own < 1.15 * min(losses.values())


def test_refusals() -> None:
    for change, text in (
        ({"method": "max"}, "allowed are minmax, percentile, mse, lp"),
        ({"method": "percentile", "percentile": 30}, "over 50"),
        ({"method": "lp", "p": 0}, "p=0"),
    ):
        with pytest.raises(ValueError, match=text):
            find_range(rows(), Grid(8), **change)  # type: ignore[arg-type]
