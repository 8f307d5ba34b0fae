"""The adaptor taught through whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_clockwork import OPTIMIZER, fit, prompts, teacher  # noqa: F401

from edgegen.reuse import Stage, clockwork
from edgegen.training.solution import SolutionModule
from edgegen.training.teacher import Teacher


def module(taught: Teacher | None = None, **options: Any) -> SolutionModule:
    torch.manual_seed(0)
    given: dict[str, Any] = {"adaptor": {"width": 8}, "cut": Stage(), "solution": 12, **options}
    return SolutionModule(taught or teacher(), OPTIMIZER, **given)


def batch_of(data: Any) -> dict[str, Any]:
    data.setup()
    samples = [data.train_set[number] for number in range(2)]
    return {
        "prompt": [each["prompt"] for each in samples],
        "seed": torch.tensor([each["seed"] for each in samples]),
        "row": torch.tensor([each["row"] for each in samples]),
    }


def loss_of(trained: SolutionModule, batch: dict[str, Any]) -> torch.Tensor:
    trained.log = lambda *_, **__: None  # type: ignore[method-assign]
    return trained.training_step(batch, 0)


def test_the_loss_is_that_of_clockwork_against_many_steps(prompts: Any) -> None:  # noqa: F811
    trained, batch = module(), batch_of(prompts())
    with torch.no_grad():
        trained.adaptor.conv_out.weight.normal_(std=0.1)
    taught = teacher()
    seeds = batch["seed"].tolist()
    with clockwork(taught, 2, trained.adaptor):
        *_, last = taught.run(batch["prompt"], seeds)
    many = teacher(steps=12)
    *_, solution = many.run(batch["prompt"], seeds)
    off = (last.following - solution.following).square()
    expected = sum(float(sample.mean()) ** 0.5 for sample in off) / 2
    found = loss_of(trained, batch).detach()
    assert float(expected) > 0
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("clock", [2, {"reuse": [2, 3]}])
def test_the_gradient_goes_through_the_whole_run(prompts: Any, clock: Any) -> None:  # noqa: F811
    """Against a difference quotient, along a random direction, for every weight at once."""
    taught = teacher()
    trained, batch = module(taught, clock=clock), batch_of(prompts())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        trained.adaptor.conv_out.weight.normal_(std=0.1, generator=generator)
    loss_of(trained, batch).backward()
    assert all(p.grad is None for p in taught.unet.parameters())
    parameters = list(trained.adaptor.parameters())
    along = [torch.randn(p.shape, generator=generator) for p in parameters]
    size = 1e-3
    expected = sum(
        float((p.grad * d).sum())
        for p, d in zip(parameters, along, strict=True)
        if p.grad is not None
    )
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, along, strict=True):
                p.add_(d, alpha=sign * size)
        values.append(float(loss_of(trained, batch).detach()))
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(expected, rel=0.03)


def test_it_learns_to_end_nearer_than_the_identity(prompts: Any, tmp_path: Path) -> None:  # noqa: F811
    losses = fit(module(), prompts(distinct=4), tmp_path, steps=30)
    assert losses[0][1] == 1  # untrained, the adaptor is the identity
    assert sum(relative for _, relative in losses[-5:]) / 5 < 0.95


def test_ends_are_kept(prompts: Any, tmp_path: Path) -> None:  # noqa: F811
    fresh = fit(module(), prompts(distinct=4), tmp_path, steps=4)
    taught, calls = teacher(), []
    taught.unet.conv_in.register_forward_hook(lambda *_: calls.append(None))
    store = str(tmp_path / "store")
    losses = fit(module(taught, store=store), prompts(distinct=4), tmp_path, steps=4)
    # Of two batches both ends, and four runs with a gradient.
    assert len(calls) == 2 * (12 + 4) + 4 * 4
    for (loss, _), (expected, _) in zip(losses, fresh, strict=True):
        assert loss == pytest.approx(expected, rel=5e-3)
    again = fit(module(taught, store=store), prompts(distinct=4), tmp_path, steps=4)
    assert again == losses
    assert len(calls) == 2 * (12 + 4) + 8 * 4
    # Other schedules and step counts have the same solutions, and ends of their own.
    assert len(list((tmp_path / "store").iterdir())) == 2
    calls.clear()
    other = module(taught, store=store, clock={"reuse": [2, 3]})
    fit(other, prompts(distinct=4), tmp_path, steps=1)
    assert len(calls) == 4 + 4
    fit(module(teacher(steps=3), store=store), prompts(distinct=4), tmp_path, steps=1)
    assert len(list((tmp_path / "store").iterdir())) == 4
    fit(module(taught, store=store, solution=13), prompts(distinct=4), tmp_path, steps=1)
    assert len(list((tmp_path / "store").iterdir())) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solution": 4}, "solution=4: must be a number above 4 steps"),
        ({"trajectories": "plain"}, "whole runs are the student's own"),
        ({"taught": {"dtype": "bfloat16"}}, "must be float32"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    taught = teacher(**options.pop("taught", {}))
    with pytest.raises(ValueError, match=message):
        module(taught, **options)
