from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from edgegen.cost import ModuleCost, count
from edgegen.cost.profiling import (
    Profile,
    Row,
    intensity,
    least_seconds,
    median_iqr,
    modules_to,
    profile,
    targets,
)
from edgegen.cost.recording import NetworkCall, record_calls
from edgegen.cost.roofline import Device

Inputs = tuple[torch.Tensor, ...]


def only(module: nn.Module, *inputs: torch.Tensor, **options: int) -> Profile:
    return profile(NetworkCall("net", module, inputs, times=1), repeats=1, warmup=0, **options)


def test_convolution_by_hand() -> None:
    """(2, 3, 16, 16) → (2, 8, 16, 16), 3×3, in float32."""
    [row] = only(nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 16, 16)).rows
    macs = 2 * 16 * 16 * 8 * 3 * 9
    moved = 4 * (2 * 3 * 256 + 8 * 3 * 9 + 8 + 2 * 8 * 256)
    assert row.cost.macs_all == row.cost.macs_conv_linear == row.own.macs_all == macs
    assert row.cost.bytes == row.own.bytes == moved
    assert row.intensity == 2 * macs / moved


def test_linear_by_hand() -> None:
    """(4, 32) → (4, 16)."""
    [row] = only(nn.Linear(32, 16), torch.randn(4, 32)).rows
    macs, moved = 4 * 32 * 16, 4 * (4 * 32 + 32 * 16 + 16 + 4 * 16)
    assert (row.cost.macs_all, row.cost.bytes) == (macs, moved)
    assert row.intensity == 2 * macs / moved


def test_nothing_moved() -> None:
    assert intensity(ModuleCost()) == 0.0


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 9])
def test_counts_are_those_of_count(
    unet: UNet2DConditionModel, unet_inputs: Inputs, depth: int
) -> None:
    found = only(unet, *unet_inputs, depth=depth)
    cost = count(unet, *unet_inputs)
    for row in found.rows:
        name = row.name.removeprefix("net").lstrip(".")
        assert row.cost == (cost.under(name) if name else cost.total)
    total = sum((row.own for row in found.rows), ModuleCost())
    assert total == cost.total  # own parts are the whole, once
    assert found.cost.macs_all == cost.macs_all


def test_one_repeat_adds_up_exactly(unet: UNet2DConditionModel, unet_inputs: Inputs) -> None:
    found = only(unet, *unet_inputs, depth=3)
    assert found.own_sum == pytest.approx(found.rows[0].seconds, rel=1e-9)
    for row in found.rows:
        assert row.own_seconds <= row.seconds
        assert row.split or row.own_seconds == row.seconds


class Sleeper(nn.Module):
    """Takes made-up time, a little more in every call."""

    def __init__(self, clock: list[float], seconds: float, *children: nn.Module) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.inside = nn.ModuleList(children)
        self.proj = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.seconds
        for child in self.inside:
            x = child(x)
        return self.proj(x)


def test_times_on_a_made_up_clock() -> None:
    clock = [0.0]
    root = Sleeper(clock, 1.0, Sleeper(clock, 2.0), Sleeper(clock, 4.0, Sleeper(clock, 8.0)))
    found = profile(
        NetworkCall("net", root, (torch.zeros(1, 2),), times=3),
        depth=1,
        repeats=4,
        clock=lambda: clock[0],
    )
    assert (found.calls, found.repeats, found.seconds, found.seconds_iqr) == (3, 4, 15.0, 0.0)
    rows = {row.name: (row.level, row.seconds, row.own_seconds, row.split) for row in found.rows}
    assert rows == {
        "net": (0, 15.0, 1.0, True),
        "net.inside.0": (1, 2.0, 2.0, False),
        "net.inside.1": (1, 12.0, 12.0, False),  # 8 of them in a child below the depth
        "net.proj": (1, 0.0, 0.0, False),
    }
    assert found.own_sum == found.seconds


def test_levels_leave_lists_out(unet: UNet2DConditionModel) -> None:
    levels = {name: level for name, (level, _) in modules_to(unet, 2).items()}
    assert levels[""] == 0
    assert levels["down_blocks.0"] == levels["mid_block"] == levels["conv_in"] == 1
    assert levels["down_blocks.0.resnets.0"] == levels["mid_block.attentions.0"] == 2
    assert "down_blocks" not in levels
    assert max(levels.values()) == 2
    assert list(modules_to(unet, 0)) == [""]


def test_median_and_quartiles() -> None:
    assert median_iqr([5.0, 1.0, 2.0, 3.0, 100.0]) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"depth": -1}, "depth=-1"), ({"repeats": 0}, "repeats=0"), ({"warmup": -1}, "warmup=-1")],
)
def test_refused(options: dict[str, int], words: str) -> None:
    call = NetworkCall("net", nn.Linear(2, 2), (torch.zeros(1, 2),), times=1)
    with pytest.raises(ValueError, match=words):
        profile(call, **options)


# The calls of a pipeline


def test_calls_of_a_pipeline(pipe: StableDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    with record_calls(pipe) as calls:
        pipe("ab", num_inference_steps=4, height=16, width=16, generator=generator)
    times = {name: call.times for name, call in calls.items() if call.times}
    assert times == {"text_encoder": 2, "unet": 4, "vae.decoder": 1, "vae.post_quant_conv": 1}
    assert calls["unet"].args[0].shape == (2, 4, 8, 8)
    assert calls["unet"].kwargs["encoder_hidden_states"].shape == (2, 16, 48)
    with torch.no_grad():
        again = calls["unet"]()[0]
    assert torch.equal(again, pipe.unet(*calls["unet"].args, **calls["unet"].kwargs)[0].detach())
    assert calls["unet"].times == 4  # made again is not counted again


def test_a_compiled_network_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.compile()
    with pytest.raises(ValueError, match="compiled"), record_calls({"net": module}):
        pass


# What to attack

MACHINE = Device("made up", flops=100.0, bandwidth=10.0)


def row(name: str, own_seconds: float, macs: int, moved: int, split: bool = False) -> Row:
    work = ModuleCost(conv=macs, bytes=moved)
    return Row(name, "Kind", 1, 1, own_seconds, 0.0, own_seconds, work, work, split)


def profiles() -> list[Profile]:
    rows = [row("a", 1.0, 0, 20, split=True), row("a.x", 8.0, 200, 10), row("a.y", 4.0, 10, 40)]
    cost = count(nn.Identity(), torch.zeros(1))
    return [
        Profile("a", 5, 13.0, 0.0, rows, cost, 1),
        Profile("b", 1, 3.0, 0.0, [row("b", 3.0, 0, 0)], cost, 1),
    ]


def test_targets_are_own_parts_over_all_calls() -> None:
    found = {each.name: each for each in targets(profiles(), MACHINE)}
    assert list(found) == ["a (own)", "a.x", "a.y", "b"]
    assert found["a.x"].seconds == 5 * 8.0
    assert found["a.x"].roof_seconds == 5 * 2 * 200 / 100.0  # arithmetic is the limit
    assert found["a.x"].times_roof == 2.0
    assert found["a.y"].roof_seconds == 5 * 40 / 10.0  # memory is
    assert found["a.y"].times_roof == 1.0
    assert found["a (own)"].cost == ModuleCost(bytes=100)
    assert found["b"].times_roof == float("inf")
    assert sum(each.seconds for each in found.values()) == 5 * 13.0 + 3.0


def test_least_time_on_a_device_of_another_width() -> None:
    assert least_seconds(profiles(), MACHINE, bits=32) == 5 * (20 / 10 + 400 / 100 + 40 / 10)
    narrow = Device("made up", 100.0, 10.0, bits=8)  # a quarter of the bytes
    assert least_seconds(profiles(), narrow, bits=32) == 5 * (5 / 10 + 400 / 100 + 10 / 10)
