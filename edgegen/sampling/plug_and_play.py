"""Plug-and-Play: a picture drawn anew under another prompt (Tumanyan et al., arXiv 2211.12572).

The source is inverted to noise by DDIM. From there it is drawn anew three times side by side: as it
was, without the new prompt, and with it. The last two take features and attention of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from .guidance import guide
from .steps import StepClock, bound_by, step_clock

BRANCHES = 3


@torch.no_grad()
def plug_and_play(
    pipe: Any,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    steps: int = 50,
    inversion_steps: int = 1000,
    guidance: float = 7.5,
    source_prompts: Sequence[str] | None = None,
    features: float = 0.8,
    attention: float = 0.5,
) -> list[Image.Image]:
    """Draw each picture anew under its prompt, keeping its layout.

    Methods that reuse features work beside it, in the inversion as in the generation.

    Args:
        pipe: a StableDiffusionPipeline.
        pictures: (B, 3, H, W) in [-1, 1]; the sides multiples of the pipeline's stride.
        prompts: of the new pictures.
        steps: of the generation; divides `inversion_steps`.
        inversion_steps: at most the steps that the model was trained with.
        guidance: of the generation, above 1; the inversion has none.
        source_prompts: of the sources; by default empty, as the authors have them.
        features, attention: share of the steps, from the first on, in which decoder features and
            the queries and keys of self-attention are those of the source.

    Returns B pictures.

    Raises:
        ValueError: steps, shares or counts that do not fit.
    """
    sources = [""] * len(prompts) if source_prompts is None else list(source_prompts)
    _check(pipe, pictures, prompts, sources, steps, inversion_steps, guidance, features, attention)
    text, empty = pipe.encode_prompt(
        list(prompts), pipe._execution_device, 1, True, negative_prompt=[""] * len(prompts)
    )
    origin, _ = pipe.encode_prompt(sources, pipe._execution_device, 1, False)
    vae = pipe.vae
    latents = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.mode()
    latents = latents * vae.config.scaling_factor
    with step_clock(pipe.scheduler) as clock:
        path = invert(pipe, latents, origin, inversion_steps, clock)
        made = _generate(
            pipe,
            path,
            torch.cat([origin, empty, text]),
            steps,
            guidance,
            features,
            attention,
            clock,
        )
    decoded = vae.decode(made / vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pil")


@torch.no_grad()
def invert(
    pipe: Any, latents: Tensor, text: Tensor, steps: int, clock: StepClock
) -> dict[int, Tensor]:
    """DDIM inversion: latents (B, C, h, w) at rising timesteps, from clean ones.

    Args:
        text: features of the prompts of the sources, (B, T, D).
        steps: one evaluation each, of `len(latents)` samples.
        clock: told of each of them.
    """
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config, **_PLAIN)
    scheduler.set_timesteps(steps)
    last = scheduler.config.num_train_timesteps
    # With an offset the last of all steps would lie beyond the schedule.
    times = [time for time in scheduler.timesteps.tolist() if time < last]
    clock.reset(times)
    path = {}
    for time in times:
        output = pipe.unet(latents, time, encoder_hidden_states=text, return_dict=False)[0]
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
        path[time] = latents
        clock.tick()
    return path


@contextmanager
def injected(unet: Any, features: bool, attention: bool) -> Iterator[None]:
    """While open, the second and third part of a batch take what is the first part's.

    Args:
        features: the output of the second layer of the second decoder block.
        attention: queries and keys of the decoder's self-attention from there on.

    For SD 1.5 these are layer 4, and layers 4 to 11 of the paper.
    """
    taken: list[nn.Module] = []
    if features:
        taken.append(unet.up_blocks[1].resnets[1])
    if attention:
        for level, block in enumerate(unet.up_blocks):
            for transformer in list(getattr(block, "attentions", ()))[level == 1 :]:
                for layer in transformer.transformer_blocks if level else ():
                    taken += [layer.attn1.to_q, layer.attn1.to_k]
    with ExitStack() as stack:
        for module in taken:
            stack.callback(module.register_forward_hook(_of_the_first).remove)
        yield


_PLAIN = {"clip_sample": False, "thresholding": False, "timestep_spacing": "leading"}


def _generate(
    pipe: Any,
    path: dict[int, Tensor],
    text: Tensor,
    steps: int,
    guidance: float,
    features: float,
    attention: float,
    clock: StepClock,
) -> Tensor:
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **_PLAIN)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    clock.reset(times)
    latents = path[times[0]]
    for step, time in enumerate(times):
        share = step / steps
        with injected(pipe.unet, share < features, share < attention):
            batch = torch.cat([path[time], latents, latents])
            output = pipe.unet(batch, time, encoder_hidden_states=text, return_dict=False)[0]
        _, without, given = output.chunk(BRANCHES)
        moved = scheduler.step(guide(without, given, guidance), time, latents, return_dict=False)
        latents = moved[0]
        clock.tick()
    return latents


def _of_the_first(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return torch.cat([out.chunk(BRANCHES)[0]] * BRANCHES)


def _check(
    pipe: Any,
    pictures: Tensor,
    prompts: Sequence[str],
    sources: Sequence[str],
    steps: int,
    inversion_steps: int,
    guidance: float,
    features: float,
    attention: float,
) -> None:
    if reason := bound_by(pipe.unet):
        raise ValueError(f"plug-and-play: cannot go with {reason}")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError("plug-and-play: takes a text-to-image model, not one that reads pictures")
    if pipe.unet.config.time_cond_proj_dim is not None or pipe.unet.config.addition_embed_type:
        raise ValueError("plug-and-play: takes models of Stable Diffusion 1.x and 2.x")
    if len(pipe.unet.up_blocks) < 2 or len(pipe.unet.up_blocks[1].resnets) < 2:
        raise ValueError("plug-and-play: the UNet needs two decoder blocks of two layers")
    if not len(pictures) == len(prompts) == len(sources):
        raise ValueError(f"{len(pictures)} pictures, {len(prompts)} prompts: one each is needed")
    most = pipe.scheduler.config.num_train_timesteps
    for name, number in (("steps", steps), ("inversion_steps", inversion_steps)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
            raise ValueError(f"{name}={number}: must be a whole number from 1 to {most}")
    if inversion_steps % steps or most % inversion_steps:
        raise ValueError(
            f"steps={steps}, inversion_steps={inversion_steps}: the first must divide the second, "
            f"and that {most}"
        )
    if not guidance > 1:
        raise ValueError(f"guidance={guidance}: must be above 1")
    for name, share in (("features", features), ("attention", attention)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: must be a share of the steps, 0 to 1")
