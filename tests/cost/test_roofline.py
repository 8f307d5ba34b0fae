from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from edgegen.cost.devices import DEVICES
from edgegen.cost.roofline import Device, best_rate, measure

DEVICE = Device("made up", flops=100.0, bandwidth=20.0)


@pytest.mark.parametrize("intensity", [0.0, 0.1, 4.9, 5.0, 5.1, 1e6])
def test_attainable_is_the_lower_roof(intensity: float) -> None:
    assert DEVICE.attainable(intensity) == min(100.0, intensity * 20.0)


def test_ridge_is_where_the_roofs_meet() -> None:
    assert DEVICE.ridge == 5.0
    assert DEVICE.attainable(5.0) == 100.0
    assert DEVICE.attainable(4.0) == 80.0


@pytest.mark.parametrize(("flops", "moved"), [(1000.0, 100.0), (10.0, 100.0), (0.0, 7.0)])
def test_least_time_is_work_over_attainable_speed(flops: float, moved: float) -> None:
    expected = flops / DEVICE.attainable(flops / moved) if flops else moved / 20.0
    assert DEVICE.seconds(flops, moved) == pytest.approx(expected)


def test_best_rate_is_that_of_the_fastest_run() -> None:
    now, took = [0.0], iter([9.0, 4.0, 2.0, 5.0, 3.0])  # the first run warms up

    def run() -> None:
        now[0] += next(took)

    assert best_rate(run, work=12.0, seconds=8.0, clock=lambda: now[0]) == 12.0 / 2.0
    assert list(took) == [3.0]  # 4 + 2 + 5 seconds were enough


def test_at_least_three_runs() -> None:
    runs = []
    best_rate(lambda: runs.append(time.sleep(0.001)), 1.0, 1e-9, time.perf_counter)
    assert len(runs) == 1 + 3


def test_this_machine_against_numpy() -> None:
    """The order of magnitude; other work on the machine may slow one of the two."""
    found = measure("cpu", torch.float32, seconds=0.05)
    a = np.ones((512, 512), np.float32)
    matmul = best_rate(lambda: a @ a, 2 * 512**3, 0.05, time.perf_counter)
    source, sink = np.ones(2**25, np.uint8), np.zeros(2**25, np.uint8)
    copying = best_rate(lambda: np.copyto(sink, source), 2 * 2**25, 0.05, time.perf_counter)
    assert matmul / 20 < found.flops < matmul * 50  # numpy's library may be a plain one
    assert copying / 20 < found.bandwidth < copying * 20
    assert found.measured
    assert found.bits == 32
    assert found.cache_bandwidth is not None


def test_no_time_to_measure() -> None:
    with pytest.raises(ValueError, match="seconds=0"):
        measure(seconds=0)


def test_devices_are_plausible_estimates_with_sources() -> None:
    assert {"phone NPU", "phone GPU"} <= {device.name.split(" (")[0] for device in DEVICES}
    for device in DEVICES:
        assert not device.measured
        assert len(device.source) > 20
        assert 1e12 < device.flops < 1e15
        assert 1e10 < device.bandwidth < 1e13
        assert device.bits in (8, 16)
        assert f"{device.bits} bit" in device.name
