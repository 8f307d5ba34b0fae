"""What a whole sampling run costs, from an architecture alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..cost import CostTracker, Part, Summary
from .architectures import Architecture, vae_factor
from .example_inputs import (
    run_image_encoder,
    run_text_encoder,
    run_unet,
    run_vae_decoder,
    run_vae_encoder,
)


def run_cost(
    architecture: Architecture,
    steps: int,
    guidance: bool = True,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
    method: Callable[[Any], AbstractContextManager[Any]] | None = None,
) -> Summary:
    """Cost of making `batch` pictures (or clips), counted on the `meta` device.

    Texts are encoded once with their negatives, the UNet runs once a step on all guidance
    branches, the autoencoder decodes once, and encodes once where the UNet takes a picture. An
    autoencoder on its own encodes and decodes once.

    Args:
        height, width: pixels; the architecture's own by default.
        method: at work on the run's pipeline, of which it finds `unet` and `scheduler`.

    Raises:
        ValueError: a method without a UNet, fewer than one step or picture, no size, or one that
            the autoencoder cannot do.
    """
    for name, number in (("steps", steps), ("batch", batch)):
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    size = latent_size(architecture, height, width)
    modules = architecture.build("meta")
    for module in modules.values():
        nn.Module.to(module, dtype)  # diffusers' own `to` warns of what matters to weights alone
    if method is not None and "unet" not in modules:
        raise ValueError(f"{architecture.name} has no UNet for a method to work on")
    parts: dict[str, Part] = {}
    with torch.no_grad():
        for times, name, call in run_calls(architecture, modules, steps, guidance, batch, size):
            if name == "unet" and method is not None:
                branches = architecture.branches if guidance else 1
                tracker, times = _count_with(method, modules[name], call, times, branches), 1
            else:
                with CostTracker({name: modules[name]}) as tracker:
                    call()
            parts |= {key: part * times for key, part in tracker.summary().items()}
    return Summary(parts, images=batch)


def _count_with(
    method: Callable[[Any], AbstractContextManager[Any]],
    unet: nn.Module,
    call: Callable[[], Any],
    steps: int,
    branches: int,
) -> CostTracker:
    scheduler = _Steps()
    target = SimpleNamespace(unet=unet, scheduler=scheduler, branches=branches)
    target.do_classifier_free_guidance = branches > 1
    # The method first: it may exchange weights, whose size the tracker reads.
    with method(target), CostTracker({"unet": unet}) as cost:
        scheduler.set_timesteps(steps)
        for _ in range(steps):
            call()
            scheduler.step()
    return cost


class _Steps:
    """Of a scheduler, only what tells a method which step it is."""

    timesteps: Sequence[float] = ()

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(999, 0, steps + 1)[:-1].tolist()

    def step(self) -> None: ...

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        return sample


def run_calls(
    architecture: Architecture,
    modules: dict[str, nn.Module],
    steps: int,
    guidance: bool,
    batch: int,
    size: tuple[int, int],
) -> Iterator[tuple[int, str, Callable[[], Any]]]:
    """(times, component, one call of it), in the order in which a pipeline makes them."""
    factor = vae_factor(architecture.components)
    pixels = (size[0] * factor, size[1] * factor)
    unet, vae = modules.get("unet"), modules.get("vae")
    texts = [name for name in modules if name.startswith("text_encoder")]
    for name in texts:
        yield 1 + guidance, name, partial(run_text_encoder, modules[name], batch)
    if "image_encoder" in modules:
        yield 1, "image_encoder", partial(run_image_encoder, modules["image_encoder"], batch)
    if vae is not None and _takes_picture(architecture):
        yield 1, "vae", partial(run_vae_encoder, vae, batch, *pixels)
    if unet is not None:
        samples = batch * (architecture.branches if guidance else 1)
        lengths = [architecture.components[name].get("max_position_embeddings") for name in texts]
        tokens = max((length for length in lengths if length), default=77)
        yield steps, "unet", partial(run_unet, unet, samples, *size, tokens)
    if vae is not None:
        yield 1, "vae", partial(run_vae_decoder, vae, batch, *size, architecture.frames)


def _takes_picture(architecture: Architecture) -> bool:
    unet = architecture.components.get("unet")
    latents = architecture.components["vae"].get("latent_channels", 4)
    return unet is None or unet.get("in_channels", latents) > latents


def latent_size(
    architecture: Architecture, height: int | None, width: int | None
) -> tuple[int, int]:
    height, width = height or architecture.height, width or architecture.width
    if not {"unet", "vae"} & architecture.components.keys():
        return 0, 0
    if height is None or width is None:
        raise ValueError(f"{architecture.name} names no size: give height and width in pixels")
    factor = vae_factor(architecture.components)
    for name, pixels in (("height", height), ("width", width)):
        if pixels < 1 or pixels % factor:
            raise ValueError(f"{name}={pixels}: must be a positive multiple of {factor} pixels")
    return height // factor, width // factor
