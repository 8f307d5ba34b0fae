"""Published TFLOPs, from architectures alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from reuse_models import draw, full_size

from edgegen.cost import CostTracker
from edgegen.pipelines.example_inputs import run_unet
from edgegen.reuse import Reuse, clockwork


@pytest.fixture(scope="module")
def unets() -> Callable[[str], Any]:
    return functools.cache(full_size)


def tflops(
    unet: Any, method: AbstractContextManager[Reuse], steps: int = 8, branches: int = 2
) -> tuple[float, list[float]]:
    """TFLOPs (conv+linear) of a run at 512×512, and GFLOPs of each step on one branch."""
    with method as attached, CostTracker({"unet": unet}) as cost, torch.no_grad():
        attached.steps.reset(range(steps))
        for _ in range(steps):
            run_unet(unet, branches, 64, 64)
            attached.steps.tick()
    each = [2 * step.macs_conv_linear / 1e9 / branches for step in cost.steps()]
    return 2 * sum(step.macs_conv_linear for step in cost.steps()) / 1e12, each


def test_identity_before_the_upsampler(unets: Any) -> None:
    """SD 1.5, clock 2, 8 steps: 4 full steps and 4 adaptor steps of 228.1 GFLOPs a branch."""
    total, each = tflops(unets("sd15"), clockwork(unets("sd15"), 2))
    assert total == pytest.approx(7.243, abs=0.0005)
    assert each == pytest.approx([677.2, 228.1] * 4, abs=0.06)


@pytest.mark.parametrize(
    ("model", "branches", "predictor", "expected"),
    [
        ("sd15", 2, "resnet", 7.30),
        ("efficient-sd15", 2, "identity", 5.90),
        ("efficient-sd15", 2, "resnet", 5.95),
        ("efficient-sd15", 1, "identity", 2.95),
        ("efficient-sd15", 1, "resnet", 2.97),
    ],
)
def test_table_1(unets: Any, model: str, branches: int, predictor: str, expected: float) -> None:
    unet = unets(model)
    total, _ = tflops(unet, clockwork(unet, 2, predictor), branches=branches)
    assert total == pytest.approx(expected, abs=0.0075)


@pytest.mark.parametrize(
    ("predictor", "stage", "published"),
    [("identity", 1, 287), ("resnet", 1, 301), ("light", 1, 289), ("resnet", 2, 734)],
)
def test_ablations_of_the_paper(unets: Any, predictor: str, stage: int, published: float) -> None:
    """GFLOPs of an adaptor step on both branches; Efficient UNet."""
    unet = unets("efficient-sd15")
    _, each = tflops(unet, clockwork(unet, 2, predictor, stage=stage), steps=2)
    assert 2 * each[0] == pytest.approx(1187, rel=0.01)
    assert 2 * each[1] == pytest.approx(published, rel=0.02)


def test_after_the_upsampler(unets: Any) -> None:
    unet = unets("sd15")
    _, each = tflops(unet, clockwork(unet, 2, before_upsampler=False), steps=2)
    assert each[1] == pytest.approx(197.9, abs=0.05)


def test_counted_as_it_runs(pipe: Any) -> None:
    """Full and reuse steps are counted apart, and only they."""
    methods: dict[str, Any] = {"plain": nullcontext(), "reuse": clockwork(pipe, 2)}
    counted = {}
    for name, method in methods.items():
        with CostTracker(pipe) as cost, method:
            draw(pipe, steps=4)
        counted[name] = [step.macs_all for step in cost.steps()]
    full, reused = counted["reuse"][:2]
    assert counted["plain"] == [full] * 4
    assert counted["reuse"] == [full, reused] * 2
    assert reused < full
