"""Quantizers of activations: groups of timesteps, split channels, dynamic ranges."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler

from edgegen.quantization.grids import Grid
from edgegen.quantization.quantizers import DynamicQuantizer, Period, StaticQuantizer
from edgegen.sampling.steps import StepClock, step_clock


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_groups_divide_the_timesteps() -> None:
    period = Period(4, 1000)
    found = [period.group(time) for time in (0, 249.9, 250, 500, 999, 1000, -1)]
    assert found == [0, 0, 1, 2, 3, 3, 0]


def test_scales_by_timestep_follow_the_scheduler() -> None:
    grid, x = Grid(8), values(2, 3)
    period = Period(2, 1000)
    quantizer = StaticQuantizer(grid, torch.tensor([[0.1], [0.5]]), None, period=period)
    scheduler = DDIMScheduler()
    used = []
    with step_clock(scheduler) as clock:
        stop = period.follow(clock)
        with pytest.raises(RuntimeError, match="within a run only"):
            quantizer(x)
        scheduler.set_timesteps(4)  # 750, 500, 250, 0
        for time in scheduler.timesteps:
            for scale in (0.1, 0.5):
                expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)
                if torch.equal(quantizer(x), expected):
                    used.append(scale)
            scheduler.step(x, time, x)
        with pytest.raises(RuntimeError, match="within a run only"):
            quantizer(x)
        stop()
        scheduler.set_timesteps(4)
    assert used == [0.5, 0.5, 0.1, 0.1]
    period.at(0)
    assert torch.equal(quantizer(x), torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127))


def test_period_is_shared_and_not_copied() -> None:
    period = Period(2)
    pair = torch.nn.ModuleList(
        StaticQuantizer(Grid(8), torch.ones(2, 1), None, period=period) for _ in range(2)
    )
    pair.double()
    assert pair[0].period is pair[1].period is period
    assert not pair.state_dict()
    with pytest.raises(RuntimeError, match="copy it before quantizing"):
        copy.deepcopy(pair)
    clock = StepClock()
    period.follow(clock)
    clock.reset([900.0])
    assert period.index.item() == 1


@pytest.mark.parametrize("axis", [1, -1])
def test_split_channels_have_scales_of_their_own(axis: int) -> None:
    x = values(2, 6, 4, 6)
    scale, point = torch.tensor([[0.02, 0.3]]), torch.tensor([[5.0, -7.0]])
    quantizer = StaticQuantizer(Grid(4, False), scale, point, axis, split=2)
    first, second = x.split([2, 4], dim=axis)
    expected = torch.cat(
        [
            torch.fake_quantize_per_tensor_affine(first, 0.02, 5, -8, 7),
            torch.fake_quantize_per_tensor_affine(second, 0.3, -7, -8, 7),
        ],
        dim=axis,
    )
    assert torch.equal(quantizer(x), expected)


@pytest.mark.parametrize("axes", [None, (-1,), (1, 2, 3)])
def test_dynamic_ranges(axes: tuple[int, ...] | None) -> None:
    """Each token (sample, tensor) by itself, by torch."""
    x = values(3, 4, 5, 6)
    rows = {None: (1, -1), (-1,): (60, 6), (1, 2, 3): (3, 120)}[axes]  # type: ignore[index]
    out = DynamicQuantizer(Grid(8, symmetric=False), axes)(x)
    for row, own in zip(x.reshape(rows), out.reshape(rows), strict=True):
        low, high = row.min().clamp(max=0), row.max().clamp(min=0)
        scale = ((high - low) / 255).item()
        zero = int(-128 - (low / scale).round())
        expected = torch.fake_quantize_per_tensor_affine(row, scale, zero, -128, 127)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
