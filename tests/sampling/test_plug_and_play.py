"""Against the paper's loop, written out with DDIM in closed form."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch.nn import functional as F

from edgegen.cost import CostTracker
from edgegen.reuse import clockwork
from edgegen.sampling.plug_and_play import injected, plug_and_play

Forward = Callable[..., torch.Tensor]


def features(text: str) -> torch.Tensor:
    """A text's, (1, 5, 16): random, but a function of the text."""
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return torch.randn(1, 5, 16, generator=generator)


class Pipeline(StableDiffusionPipeline):
    """Without a text encoder."""

    def encode_prompt(self, prompt: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        given = torch.cat([features(text) for text in prompt])
        without = None if negative_prompt is None else torch.cat([*map(features, negative_prompt)])
        return given, without


@pytest.fixture
def pipe() -> Any:
    """Three levels, two of them with attention, as SD has them."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    with torch.no_grad():  # or the way to noise and back would blow up what rounding leaves
        unet.conv_out.weight *= 0.2
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return Pipeline(
        vae=vae.eval(),
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler(steps_offset=1, beta_end=0.01),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ddim(latents: torch.Tensor, noise: torch.Tensor, now: float, then: float) -> torch.Tensor:
    """Song et al. 2021, equation 12 with σ = 0."""
    clean = (latents - (1 - now) ** 0.5 * noise) / now**0.5
    return then**0.5 * clean + (1 - then) ** 0.5 * noise


@torch.no_grad()
def plain_loop(pipe: Any, steps: int, inversion: int, guidance: float) -> torch.Tensor:
    """The authors' two scripts, for two pictures; gives the final latents."""
    unet, levels = pipe.unet, pipe.scheduler.alphas_cumprod.tolist()
    first = 1.0  # as DDIM has it by default
    offset = pipe.scheduler.config.steps_offset
    text, empty = pipe.encode_prompt(["a cat", "an ox"], "cpu", 1, True, negative_prompt=["", ""])
    latents = pipe.vae.encode(pictures()).latent_dist.mode() * pipe.vae.config.scaling_factor
    path, before = {}, first
    for time in range(offset, 1000, 1000 // inversion):
        noise = unet(latents, time, empty).sample
        latents = ddim(latents, noise, before, levels[time])
        path[time], before = latents, levels[time]
    times = list(range(offset, 1000, 1000 // steps))[::-1]
    latents = path[times[0]]
    for step, time in enumerate(times):
        layers = [
            layer
            for transformer in (*unet.up_blocks[1].attentions[1:], *unet.up_blocks[2].attentions)
            for layer in transformer.transformer_blocks
        ]
        before_ = {layer.attn1: layer.attn1.forward for layer in layers}
        if step < 0.5 * steps:
            for attention in before_:
                attention.forward = shared_attention(attention)
        resnet = unet.up_blocks[1].resnets[1]
        own = resnet.forward
        if step < 0.8 * steps:

            def of_the_source(hidden: Any, time_: Any, own: Forward = own) -> torch.Tensor:
                out = own(hidden, time_)
                return torch.stack([out[0], out[1]] * 3)

            resnet.forward = of_the_source
        out = unet(torch.cat([path[time], latents, latents]), time, torch.cat([empty, empty, text]))
        for attention, forward in before_.items():
            attention.forward = forward
        resnet.forward = own
        noise = out.sample[2:4] + guidance * (out.sample[4:6] - out.sample[2:4])
        after = times[step + 1] if step + 1 < len(times) else None
        latents = ddim(latents, noise, levels[time], first if after is None else levels[after])
    return latents


def shared_attention(module: Any) -> Forward:
    """softmax(Q Kᵀ/√d) V with the Q and K of the first two samples for all six."""

    def forward(hidden: torch.Tensor, **_: Any) -> torch.Tensor:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (module.heads, -1)).transpose(1, 2)

        q, k = (heads(layer(hidden[:2])).repeat(3, 1, 1, 1) for layer in (module.to_q, module.to_k))
        weights = F.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        out = (weights @ heads(module.to_v(hidden))).transpose(1, 2).flatten(2)
        return module.to_out[0](out)

    return forward


def latents_of(pipe: Any, **settings: Any) -> torch.Tensor:
    """What goes into the decoder."""
    seen: list[torch.Tensor] = []
    handle = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    prompts = ["a cat", "an ox"]
    given = {"steps": 5, "inversion_steps": 20, "guidance": 3.0, **settings}
    images = plug_and_play(pipe, pictures(), prompts, **given)
    handle.remove()
    assert [image.size for image in images] == [(16, 16)] * 2
    return seen[0] * pipe.vae.config.scaling_factor


def test_against_the_papers_loop(pipe: Any) -> None:
    found = latents_of(pipe)
    assert torch.allclose(found, plain_loop(pipe, 5, 20, 3.0), atol=1e-4)
    for changes in ({"features": 0.0}, {"attention": 0.0}):
        assert not torch.allclose(latents_of(pipe, **changes), found, atol=1e-4)
    assert all(not module._forward_hooks for module in pipe.unet.modules())


def test_beside_clockwork(pipe: Any) -> None:
    """Both loops tell the clock, each from its beginning; half of the steps skip what they may."""
    plain = latents_of(pipe)
    with clockwork(pipe, 1):
        assert torch.equal(latents_of(pipe), plain)
    with CostTracker(pipe) as full:
        latents_of(pipe)
    with clockwork(pipe, 2) as method, CostTracker(pipe) as cost:
        assert not torch.equal(latents_of(pipe), plain)
        assert not method.steps.running
    costs = [step.macs_all for step in cost.steps()]
    plain_costs = [step.macs_all for step in full.steps()]
    assert len(costs) == 20 + 5
    assert costs[:20:2] == plain_costs[:20:2]
    assert costs[20::2] == plain_costs[20::2]
    assert all(
        ours < theirs for ours, theirs in zip(costs[1:20:2], plain_costs[1:20:2], strict=True)
    )
    assert all(ours < theirs for ours, theirs in zip(costs[21::2], plain_costs[21::2], strict=True))
    assert torch.equal(latents_of(pipe), plain)


def test_injection_of_nothing_is_nothing(pipe: Any) -> None:
    with injected(pipe.unet, features=False, attention=False):
        assert all(not module._forward_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 3}, "the first must divide the second"),
        ({"steps": 0}, "steps=0: must be a whole number from 1 to 1000"),
        ({"guidance": 1.0}, "guidance=1.0: must be above 1"),
        ({"features": 1.5}, "features=1.5: must be a share"),
        ({"source_prompts": ["a"]}, "one each is needed"),
    ],
)
def test_one_line_for_a_mistake(pipe: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as told:
        latents_of(pipe, **changes)
    assert words in str(told.value)
