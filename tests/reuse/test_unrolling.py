"""Trajectories that adaptors learn on, against the methods that use them afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reuse_models import LAYOUTS, TOKENS, WIDTH, draw, make_pipe, make_unet, texts

from edgegen.losses.features import feature_loss
from edgegen.reuse import Stage, clockwork, make_adaptor, observe
from edgegen.reuse.unrolling import (
    on_features,
    planned_passes,
    trajectory_features,
    unrolled,
)
from edgegen.sampling.trajectories import denoise

CUTS = [Stage(1), Stage(1, False), Stage(2), Stage(3, False)]
cuts = pytest.mark.parametrize("cut", CUTS, ids=str)


@pytest.fixture
def embedded() -> Any:
    return make_pipe("embedded")


def moved_adaptor(unet: Any, cut: Stage) -> Any:
    """An adaptor whose prediction is not the identity."""
    torch.manual_seed(0)
    adaptor = make_adaptor(unet, cut, width=8).eval()
    torch.nn.init.normal_(adaptor.conv_out.weight, std=0.1)
    return adaptor


def run(pipe: Any, steps: int = 5) -> Any:
    """As `draw`: the same noise, texts and guidance."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    given = texts()
    return denoise(
        pipe.unet,
        pipe.scheduler,
        noise,
        given["prompt_embeds"],
        given["negative_prompt_embeds"],
        steps=steps,
        guidance=4.0,
    )


class Kept:
    """The steps of a run, kept as they pass."""

    def __init__(self, steps: Any) -> None:
        self.steps, self.seen = steps, []

    def __iter__(self) -> Any:
        for step in self.steps:
            self.seen.append(step)
            yield step

    @property
    def latents(self) -> list[torch.Tensor]:
        return [step.following for step in self.seen]


def assert_same_run(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# What goes on in place of r_out


@cuts
def test_true_features_put_in_their_own_place_change_nothing(embedded: Any, cut: Stage) -> None:
    plain = [step.following for step in run(embedded)]
    with observe(embedded.unet, cut, lambda seen: seen.r_out.clone()):
        assert_same_run([step.following for step in run(embedded)], plain)
    with observe(embedded.unet, cut, lambda seen: torch.zeros_like(seen.r_out)) as seen:
        other = [step.following for step in run(embedded)]
        assert seen.r_out.abs().max() > 0  # the true ones are still seen
    assert not torch.equal(other[0], plain[0])
    assert_same_run([step.following for step in run(embedded)], plain)


@cuts
def test_unrolled_with_true_features_is_the_teachers_trajectory(embedded: Any, cut: Stage) -> None:
    """An adaptor that knows r_out: it is told by a run of its own."""
    plain, truth = [], []
    with observe(embedded.unet, cut) as seen:
        for step in run(embedded):
            plain.append(step.following)
            truth.append(seen.r_out)
    passes = planned_passes(2, 5)
    answers = iter([r_out for r_out, full in zip(truth, passes, strict=True) if not full])
    kept = Kept(run(embedded))
    found = list(unrolled(embedded.unet, cut, lambda *_: next(answers), passes, kept))
    assert_same_run(kept.latents, plain)
    assert len(found) == passes.count(False)
    assert all(feature_loss(each.value, each.target) == 0 for each in found)
    assert all(feature_loss(each.previous, each.target) > 0 for each in found)


@cuts
@pytest.mark.parametrize("clock", [2, 3, {"full": [1, 2]}], ids=str)
def test_the_students_trajectory_is_that_of_clockwork(
    embedded: Any, cut: Stage, clock: Any
) -> None:
    adaptor = moved_adaptor(embedded.unet, cut)
    with clockwork(embedded, clock, adaptor, cut.stage, cut.before_upsampler) as method:
        expected = draw(embedded, steps=5, size=16)
        expected_passes = method.passes
    passes = planned_passes(clock, 5)
    assert passes == expected_passes
    kept = Kept(run(embedded))
    found = list(unrolled(embedded.unet, cut, adaptor, passes, kept))
    assert torch.equal(kept.latents[-1], expected)
    assert len(found) == passes.count(False)
    plain = draw(embedded, steps=5, size=16)
    assert not torch.equal(plain, expected)


def test_on_plain_trajectories_the_teacher_stays_itself(embedded: Any) -> None:
    plain = [step.following for step in run(embedded)]
    adaptor = moved_adaptor(embedded.unet, Stage())
    kept = Kept(run(embedded))
    found = list(unrolled(embedded.unet, Stage(), adaptor, planned_passes(3, 5), kept, False))
    assert_same_run(kept.latents, plain)
    # Steps 2 and 3 are reused: the second is told the truth of the first, and not its prediction.
    assert torch.equal(found[1].previous, found[0].target)
    student = list(
        unrolled(embedded.unet, Stage(), adaptor, planned_passes(3, 5), run(embedded), True)
    )
    assert torch.equal(student[1].previous, student[0].value)
    assert not torch.equal(student[1].target, found[1].target)


def test_gradients_flow_into_the_adaptor_alone(embedded: Any) -> None:
    embedded.unet.requires_grad_(True)  # even then
    before = {name: tensor.clone() for name, tensor in embedded.unet.state_dict().items()}
    adaptor = moved_adaptor(embedded.unet, Stage())
    run_over = unrolled(embedded.unet, Stage(), adaptor, planned_passes(2, 4), run(embedded, 4))
    losses = [feature_loss(each.value, each.target) for each in run_over]
    torch.stack(losses).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adaptor.parameters())
    assert all(p.grad is None for p in embedded.unet.parameters())
    assert all(torch.equal(before[k], v) for k, v in embedded.unet.state_dict().items())


# Kept features


@cuts
def test_kept_features_give_the_predictions_of_a_plain_run(embedded: Any, cut: Stage) -> None:
    adaptor, passes = moved_adaptor(embedded.unet, cut), planned_passes(3, 5)
    kept = trajectory_features(embedded.unet, cut, run(embedded))
    assert kept["r_out"].shape[:2] == kept["r_in"].shape[:2] == (2, 5)
    at_once = on_features(adaptor, kept, passes)
    one_by_one = list(unrolled(embedded.unet, cut, adaptor, passes, run(embedded), student=False))
    for name in ("value", "target", "previous"):
        expected = torch.stack([getattr(each, name) for each in one_by_one], 1).flatten(0, 1)
        torch.testing.assert_close(getattr(at_once, name), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(at_once.target, kept["r_out"][:, [1, 2, 4]].flatten(0, 1))


class Linear(torch.nn.Module):
    """r̂_out = a · r_out(t+1) + b · r_in(t)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(2.0))
        self.b = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, r_in: Any, r_out: Any, time: Any, text: Any) -> torch.Tensor:
        return self.a * r_out + self.b * r_in


def test_a_linear_case_in_closed_form() -> None:
    """r_out = 1, 2, 4, 8 and r_in = 1, −1, 1, 1 over four steps, of which 2 and 4 are reused."""
    fields = torch.ones(1, 4, 2, 3, 3)
    scale = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None, None]
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None, None, None]
    features = {"r_out": fields * scale, "r_in": fields * sign, "time": torch.zeros(1, 4, 5)}
    model = Linear()
    found = on_features(model, features, [True, False, True, False])
    # Step 2: 2·1 − 3 = −1 against 2. Step 4: 2·4 + 3 = 11 against 8.
    loss = feature_loss(found.value, found.target)
    assert loss.item() == ((-1 - 2) ** 2 + (11 - 8) ** 2) / 2
    assert feature_loss(found.previous, found.target).item() == ((1 - 2) ** 2 + (4 - 8) ** 2) / 2
    loss.backward()
    # dL/da = mean of 2·(error)·r_out(t+1), dL/db the same with r_in(t).
    assert model.a.grad.item() == pytest.approx((2 * -3 * 1 + 2 * 3 * 4) / 2)
    assert model.b.grad.item() == pytest.approx((2 * -3 * -1 + 2 * 3 * 1) / 2)


def test_a_model_whose_middle_reads_no_text() -> None:
    unet = make_unet((1, 0), mid_block_type="UNetMidBlock2D")
    sample = torch.zeros(1, 4, 8, 8)

    def steps() -> Any:
        for time in (9, 3):
            with torch.no_grad():
                yield unet(sample, time, torch.zeros(1, TOKENS, WIDTH))

    kept = trajectory_features(unet, Stage(1), steps())
    assert "text" not in kept
    adaptor = make_adaptor(unet, Stage(1), width=8, inputs=["r_in", "r_out", "time"])
    assert on_features(adaptor, kept, [True, False]).value.shape[0] == 1


# When


@pytest.mark.parametrize(
    ("clock", "total", "expected"),
    [
        (2, 8, "F-F-F-F-"),
        (3, 7, "F--F--F"),
        ({"reuse": [5, 6, 7, 8]}, 8, "FFFF----"),
        ({"full": [1, 4]}, 6, "F--F--"),
        ({"late": 2}, 4, None),
    ],
)
def test_passes_are_those_of_the_method(clock: Any, total: int, expected: str | None) -> None:
    pipe = make_pipe("embedded")
    with clockwork(pipe, clock) as method:
        draw(pipe, steps=total)
        passes = method.passes
    assert planned_passes(clock, total) == passes
    if expected:
        assert "".join("F" if full else "-" for full in passes) == expected


@pytest.mark.parametrize(
    ("clock", "total", "message"),
    [
        ({"drift": 0.2}, 8, "known beforehand"),
        (1, 8, "nothing is predicted"),
        ({"reuse": [9]}, 8, "all of 8 steps run in full"),
        ("often", 8, "clock=often"),
    ],
)
def test_clocks_that_teach_nothing(clock: Any, total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned_passes(clock, total)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_can_be_unrolled(layout: str) -> None:
    pipe = make_pipe(layout)
    adaptor, passes = moved_adaptor(pipe.unet, Stage()), planned_passes(2, 4)
    with clockwork(pipe, 2, adaptor):
        expected = draw(pipe)

    def whole() -> Any:
        yield draw(pipe)

    latents: list[torch.Tensor] = []

    def keep() -> Any:
        for out in whole():
            latents.append(out)
            yield out

    found = list(unrolled(pipe.unet, Stage(), adaptor, passes, keep()))
    assert len(found) == 2
    assert torch.equal(latents[0], expected)
