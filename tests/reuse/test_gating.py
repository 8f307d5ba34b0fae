"""Against a loop written out with hooks, and against the authors' own package."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from reuse_models import BETAS, TOKENS, WIDTH, draw, make_pipe, make_unet, texts

from edgegen.cost import CostTracker
from edgegen.pipelines.architectures import Architecture
from edgegen.pipelines.run_cost import run_cost
from edgegen.reuse import clockwork
from edgegen.reuse.gating import gating

STEPS, GUIDANCE = 5, 4.0


def plain_loop(pipe: Any, gate: int) -> torch.Tensor:
    """T-GATE on paper: two branches and fresh cross-attention first, then neither."""
    given = texts()
    both = torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]])
    crossed = {
        name: module
        for name, module in pipe.unet.named_modules()
        if name.endswith("transformer_blocks.0.attn2")
    }
    kept: dict[str, torch.Tensor] = {}
    pipe.scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for step, time in enumerate(pipe.scheduler.timesteps):
        handles = []
        for name, module in crossed.items():
            if step < gate:

                def keep(_: Any, __: Any, out: torch.Tensor, name: str = name) -> None:
                    without, given = out[:1], out[1:]
                    kept[name] = (without + given) / 2

                handles.append(module.register_forward_hook(keep))
            else:

                def give(_: Any, __: Any, ___: Any, name: str = name) -> torch.Tensor:
                    return kept[name]

                handles.append(module.register_forward_hook(give))
        with torch.no_grad():
            if step < gate:
                out = pipe.unet(latents.repeat(2, 1, 1, 1), time, both).sample
                output = out[:1] + GUIDANCE * (out[1:] - out[:1])
            else:
                output = pipe.unet(latents, time, given["prompt_embeds"]).sample
        latents = pipe.scheduler.step(output, time, latents).prev_sample
        for handle in handles:
            handle.remove()
    return latents


@pytest.mark.parametrize("gate", [1, 3])
def test_against_a_plain_loop(pipe: Any, gate: int) -> None:
    expected = plain_loop(pipe, gate)
    with gating(pipe, gate):
        found = draw(pipe, steps=STEPS)
        assert torch.equal(draw(pipe, steps=STEPS), found)  # it begins anew by itself
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, draw(pipe, steps=STEPS), atol=1e-3)


@pytest.mark.parametrize("gate", [1, 2, 4, 0.5])
def test_against_the_package_of_its_authors(pipe: Any, gate: float) -> None:
    pytest.importorskip("tgate")
    from edgegen.reuse.peers import tgate_package

    with tgate_package(pipe, gate):
        expected = draw(pipe, steps=STEPS)
    with gating(pipe, gate):
        assert torch.allclose(draw(pipe, steps=STEPS), expected, atol=1e-5)


def test_behind_the_last_step_it_changes_nothing(any_pipe: Any) -> None:
    if hasattr(type(any_pipe), "image_guidance_scale"):
        with pytest.raises(ValueError, match="three guidance branches"), gating(any_pipe, 4):
            pass
        return
    plain = draw(any_pipe)
    with gating(any_pipe, 4) as method:
        assert torch.equal(draw(any_pipe), plain)
        assert not method.kept
    with gating(any_pipe, 2):
        assert not torch.equal(draw(any_pipe), plain)
        with pytest.raises(RuntimeError, match="copied"):
            __import__("copy").deepcopy(any_pipe.unet)
    assert torch.equal(draw(any_pipe), plain)
    assert all("forward" not in module.__dict__ for module in any_pipe.unet.modules())


def test_without_guidance_only_the_text_is_gated(pipe: Any) -> None:
    plain = draw(pipe, guidance_scale=1.0)
    with gating(pipe, 2):
        gated = draw(pipe, guidance_scale=1.0)
    assert gated.shape == plain.shape
    assert not torch.equal(gated, plain)


def test_beside_clockwork(pipe: Any) -> None:
    """The first pass behind the gate is a full one; before the gate clockwork is as it was."""
    with gating(pipe, 3):
        alone = draw(pipe, steps=6)
    with clockwork(pipe, 2) as method, gating(pipe, 3):
        both = draw(pipe, steps=6)
        assert method.passes == [True, False, True, False, True, False]
    with gating(pipe, 3), clockwork(pipe, 2):
        assert torch.equal(draw(pipe, steps=6), both)
    assert not torch.equal(both, alone)
    with clockwork(pipe, 1), gating(pipe, 3):
        assert torch.equal(draw(pipe, steps=6), alone)


def macs(pipe: Any, **settings: Any) -> list[int]:
    """Of every step, each evaluated for itself."""
    with CostTracker(pipe) as cost:
        draw(pipe, steps=6, **settings)
    return [step.macs_all for step in cost.steps()]


def test_what_it_saves_is_counted(pipe: Any) -> None:
    both = macs(pipe)[0]
    with gating(pipe, 3):
        gated = macs(pipe)
    assert gated[:3] == [both] * 3
    assert len(set(gated[3:])) == 1
    # Half of all, and of that no cross-attention.
    crossed = 0
    with CostTracker(pipe) as cost:
        draw(pipe, steps=1, guidance_scale=1.0)
    for name, found in cost._costs[cost.calls[0].key].modules.items():
        crossed += found.macs_all if "attn2" in name else 0
    assert crossed > 0
    assert gated[3] == both // 2 - crossed
    with gating(pipe, 3), clockwork(pipe, 2):
        mixed = macs(pipe)
    assert mixed[3] == gated[3]  # full, since nothing of one branch was kept
    assert mixed[4] == gated[3]
    assert mixed[5] < gated[3]


def test_a_share_of_the_run(pipe: Any) -> None:
    for share, steps, gate in ((0.5, 6, 3), (0.5, 5, 2), (0.1, 4, 1)):
        with gating(pipe, gate):
            expected = draw(pipe, steps=steps)
        with gating(pipe, share):
            assert torch.equal(draw(pipe, steps=steps), expected)


def test_streams_share_nothing(pipe: Any) -> None:
    """Two chunks of frames in one loop come out as each does in a loop of its own."""
    pipe.scheduler = DDIMScheduler(**BETAS, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    text = torch.randn(2, TOKENS, WIDTH, generator=generator)

    @torch.no_grad()
    def denoise(chunks: list[torch.Tensor], others: list[Any]) -> list[torch.Tensor]:
        with ExitStack() as stack:
            attached = [stack.enter_context(method(pipe)) for method in others]
            clock = attached[0]._steps
            pipe.scheduler.set_timesteps(6)
            for time in pipe.scheduler.timesteps:
                outs = []
                for number, chunk in enumerate(chunks):
                    with clock.stream(number):
                        outs.append(pipe.unet(chunk, time, text).sample)
                joint = pipe.scheduler.step(torch.cat(outs), time, torch.cat(chunks))
                chunks = list(joint.prev_sample.split(2))
        return chunks

    one, two = noise[:2], noise[2:]
    gate = partial(gating, gate=2)
    for others in ([gate], [gate, partial(clockwork, clock=2)]):
        together = denoise([one, two], others)
        (first,), (second,) = denoise([one], others), denoise([two], others)
        assert torch.equal(together[0], first)
        assert torch.equal(together[1], second)


def test_counted_from_an_architecture_alone() -> None:
    config = {"_class_name": "UNet2DConditionModel", **make_unet().config}
    found = Architecture("x", {"unet": config}, 64, 64)
    twice = run_cost(found, steps=6, method=gating)["unet"].total.macs_all
    without = run_cost(found, steps=6, guidance=False, method=gating)["unet"].total.macs_all
    plain = run_cost(found, steps=6, guidance=False)["unet"].total.macs_all
    assert without < plain  # the text alone is gated
    assert twice == plain + (without - plain // 2)  # three steps of two branches, three of one
    with pytest.raises(ValueError, match="three guidance branches"):
        run_cost(replace(found, branches=3), steps=6, method=gating)
    with pytest.raises(ValueError, match="clock drift: it decides by what the features hold"):
        run_cost(found, steps=6, method=partial(clockwork, clock={"drift": 0.3}))


def test_refusals(pipe: Any) -> None:
    for gate in (0, True, 1.5, 1.0, 0.0):
        with pytest.raises(ValueError, match="gate="), gating(pipe, gate):  # type: ignore[arg-type]
            pass
    with pytest.raises(ValueError, match="give the pipeline"), gating(pipe.unet):
        pass
    pipe.unet = make_unet((0, 0, 0), mid_block_type="UNetMidBlock2D")
    with pytest.raises(ValueError, match="no cross-attention"), gating(pipe):
        pass
    with pytest.raises(RuntimeError, match="inside"), gating(make_pipe(), 2):
        raise RuntimeError("inside")
