from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgegen.training.optimization import adamw


def test_decay_on_matrices_only_and_frozen_ones_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = adamw(model.parameters(), 0.1, "constant", 0, 1, weight_decay=0.3)["optimizer"]
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay == {
        id(model[0].weight): 0.3,
        id(model[0].bias): 0,
        id(model[1].weight): 0,
        id(model[1].bias): 0,
        id(model[2].bias): 0,
    }


def rates(schedule: str, warmup: int, steps: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(2, 2))
    made = adamw([parameter], 0.5, schedule, warmup, steps)
    assert made["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(steps):
        seen.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return seen


def test_cosine_after_a_linear_warmup() -> None:
    wanted = [0.5 * step / 4 for step in range(4)]
    wanted += [0.5 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert rates("cosine", 4, 20) == pytest.approx(wanted)


def test_constant_after_a_linear_warmup() -> None:
    wanted = [0, 0.125, 0.25, 0.375, *[0.5] * 4]
    assert rates("constant_with_warmup", 4, 8) == pytest.approx(wanted)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        rates("nonsense", 0, 1)
