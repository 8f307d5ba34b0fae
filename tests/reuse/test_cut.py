"""Cuts against UNets written out by hand."""

from __future__ import annotations

import unittest.mock
from typing import Any

import pytest
import torch
from reuse_models import LAYOUTS, TOKENS, WIDTH, make_unet
from torch import nn

from edgegen.reuse import Encoder, Stage, observe, reuse


class Guess(nn.Module):
    """A predictor that is not the identity and looks at everything."""

    inputs = frozenset({"r_in", "r_out", "time", "text"})

    def forward(self, r_in: Any, r_out: Any, time: Any, text: Any) -> torch.Tensor:
        scale = r_in.mean() + time.mean() + text.mean()
        return r_out.sin() + scale


def inputs(seed: int, unet: Any) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    return sample, torch.tensor(100 * seed), torch.randn(2, TOKENS, WIDTH, generator=generator)


def down(block: Any, hidden: Any, time: Any, text: Any) -> Any:
    if getattr(block, "has_cross_attention", False):
        return block(hidden, time, text)
    return block(hidden, time)


def up(block: Any, hidden: Any, skips: list[Any], time: Any, text: Any) -> Any:
    count = len(block.resnets)
    taken = tuple(skips[-count:])
    del skips[-count:]
    if getattr(block, "has_cross_attention", False):
        return block(hidden, taken, time, text)
    return block(hidden, taken, time)


def embed(unet: Any, sample: Any, time: Any) -> Any:
    return unet.time_embedding(unet.time_proj(time.expand(len(sample))))


def finish(unet: Any, hidden: Any) -> Any:
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def by_hand(unet: Any, stage: int, call: tuple[Any, ...], replace: Any = None) -> tuple[Any, Any]:
    """(output, features before the upsampler): ε = ε_H^out(ε_L(ε_H^in)).

    `replace(r_in, time, text)`, if given, stands for ε_L up to the upsampler (not included).
    """
    sample, time, text = call
    time = embed(unet, sample, time)
    deep, shallow = unet.up_blocks[:-stage], unet.up_blocks[-stage:]
    hidden = unet.conv_in(sample)
    skips = [hidden]
    for block in unet.down_blocks[:stage]:
        hidden, made = down(block, hidden, time, text)
        skips += made
    upsamplers, deep[-1].upsamplers = deep[-1].upsamplers, None
    if replace is None:
        for block in unet.down_blocks[stage:]:
            hidden, made = down(block, hidden, time, text)
            skips += made
        hidden = unet.mid_block(hidden, time, text)
        for block in deep:
            hidden = up(block, hidden, skips, time, text)
    else:
        hidden = replace(hidden, time, text)
        skips = skips[: sum(len(block.resnets) for block in shallow)]
    deep[-1].upsamplers, between = upsamplers, hidden
    hidden = upsamplers[0](hidden) if upsamplers is not None else hidden
    for block in shallow:
        hidden = up(block, hidden, skips, time, text)
    return finish(unet, hidden), between


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("layout", "stage"),
    [("sd1", 1), ("sd2", 2), ("ip2p", 1), ("embedded", 1), ("embedded", 2), ("embedded", 3)],
)
def test_stages(layout: str, stage: int, before: bool) -> None:
    unet, guess = make_unet(**LAYOUTS[layout]), Guess()
    first, second = inputs(1, unet), inputs(2, unet)
    last = unet.up_blocks[-stage - 1]
    with torch.no_grad():
        plain, r_out = by_hand(unet, stage, first)
        if not before:
            r_out = last.upsamplers[0](r_out)

        def predict(r_in: Any, time: Any, text: Any) -> torch.Tensor:
            return guess(r_in, r_out, time, text)

        if before:
            predicted, _ = by_hand(unet, stage, second, predict)
        else:
            upsampler = last.upsamplers[0]
            with unittest.mock.patch.object(upsampler, "forward", lambda hidden, *_: hidden):
                predicted, _ = by_hand(unet, stage, second, predict)
        with reuse(unet, Stage(stage, before), 2, guess) as method:
            method.steps.reset([100.0, 200.0])
            assert torch.equal(unet(*first).sample, plain)
            method.steps.tick()
            assert torch.equal(unet(*second).sample, predicted)


def test_learned_predictions_build_on_each_other(pipe: Any) -> None:
    """r_out(t+1) is what the step before used, be it computed or predicted."""
    unet, seen = pipe.unet, []

    class Double(nn.Module):
        inputs = frozenset({"r_out"})

        def forward(self, r_in: Any, r_out: Any, time: Any, text: Any) -> torch.Tensor:
            seen.append((r_in, r_out, time, text))
            return 2 * r_out

    call = inputs(1, unet)
    with torch.no_grad(), reuse(unet, Stage(), 3, Double()) as method:
        method.steps.reset([3.0, 2.0, 1.0])
        for _ in range(3):
            unet(*call)
            method.steps.tick()
    (_, first, *rest), (_, second, *_) = seen
    assert torch.equal(second, 2 * first)
    assert rest == [None, None]  # what it does not look at is not kept


@pytest.mark.parametrize("layout", ["sd1", "embedded"])
def test_encoder(layout: str) -> None:
    """The decoder runs on the encoder's features of the last full pass, with the time of now."""
    unet = make_unet(**LAYOUTS[layout])
    first, second = inputs(1, unet), inputs(2, unet)
    with torch.no_grad():
        sample, time, text = first
        time = embed(unet, sample, time)
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for block in unet.down_blocks:
            hidden, made = down(block, hidden, time, text)
            skips += made
        hidden = unet.mid_block(hidden, time, text)
        time, text = embed(unet, second[0], second[1]), second[2]
        for block in unet.up_blocks:
            hidden = up(block, hidden, skips, time, text)
        expected = finish(unet, hidden)
        with reuse(unet, Encoder(), 2) as method:
            method.steps.reset([100.0, 200.0])
            unet(*first)
            method.steps.tick()
            assert torch.equal(unet(*second).sample, expected)


@pytest.mark.parametrize("before", [True, False])
def test_observation(before: bool) -> None:
    """The features at the cut are the inputs and outputs of the blocks themselves."""
    unet = make_unet(**LAYOUTS["embedded"])
    call, seen = inputs(3, unet), {}
    last = unet.up_blocks[2]
    handles = [
        unet.down_blocks[0]
        .downsamplers[0]
        .register_forward_hook(lambda _, __, out: seen.setdefault("r_in", out)),
        last.upsamplers[0].register_forward_pre_hook(
            lambda _, args: seen.setdefault("before", args[0])
        ),
        last.register_forward_hook(lambda _, __, out: seen.setdefault("after", out)),
    ]
    with torch.no_grad():
        plain = unet(*call).sample
        for handle in handles:
            handle.remove()
        with observe(unet, Stage(1, before)) as observed:
            with pytest.raises(RuntimeError, match="no features yet"):
                _ = observed.r_out
            for _ in range(2):  # no clock, so nothing to reset
                assert torch.equal(unet(*call).sample, plain)
            assert torch.equal(observed.r_in, seen["r_in"])
            assert torch.equal(observed.r_out, seen["before" if before else "after"])
            assert torch.equal(observed.time, embed(unet, call[0], call[1]))
            assert torch.equal(observed.text, call[2])
        assert torch.equal(unet(*call).sample, plain)
