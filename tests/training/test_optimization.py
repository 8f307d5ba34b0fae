from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from edgegen.training.optimization import Muon, optimizer_and_schedule, orthogonalized


def test_decay_on_matrices_only_and_frozen_ones_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = optimizer_and_schedule(model.parameters(), 0.1, "constant", 0, 1, weight_decay=0.3)[
        "optimizer"
    ]
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


def rates(schedule: str, warmup: int, steps: int, **options: object) -> list[float]:
    parameter = nn.Parameter(torch.zeros(2, 2))
    made = optimizer_and_schedule(
        [parameter], 0.5, schedule, warmup, steps, schedule_options=options
    )
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


def test_stable_then_falling_to_zero() -> None:
    wanted = [0, 0.25, *[0.5] * 3, 0.5, 0.375, 0.25, 0.125]
    options = {"num_decay_steps": 4, "decay_type": "linear"}
    assert rates("warmup_stable_decay", 2, 9, **options) == pytest.approx(wanted)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        rates("nonsense", 0, 1)


def test_muon_steps_as_the_one_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 24 * 40).view(24, 40)) for _ in range(2))
    first = Muon([{"params": [ours], "muon": True}], lr=0.02, weight_decay=0.1)
    second = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    for _ in range(3):
        gradient = torch.randn(24, 40)
        for parameter, optimizer in ((ours, first), (theirs, second)):
            # torch averages the momentum where ours sums it: the direction is the same.
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert (ours - torch.linspace(-1, 1, 24 * 40).view(24, 40)).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalized_keeps_the_singular_vectors(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    found = orthogonalized(matrices).float()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    aligned = u.mT @ found @ v.mT  # diagonal where the vectors are the same
    values = aligned.diagonal(dim1=1, dim2=2)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert (aligned - values.diag_embed()).abs().max() < 0.05


def test_muon_takes_hidden_kernels_and_resumes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 3, 3))

    def made() -> torch.optim.Optimizer:
        made = optimizer_and_schedule(model.parameters(), 0.01, "constant", 0, 1, muon=True)
        return made["optimizer"]

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 3, 9, 9)).square().sum().backward()
        optimizer.step()

    optimizer = made()
    assert [id(p) for g in optimizer.param_groups if g.get("muon") for p in g["params"]] == [
        id(model[1].weight)
    ]
    step(optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = copy.deepcopy(optimizer.state_dict())
    step(optimizer)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(before)
    again = made()
    again.load_state_dict(kept)
    step(again)
    for key, value in model.state_dict().items():
        assert torch.equal(value, after[key]), key
