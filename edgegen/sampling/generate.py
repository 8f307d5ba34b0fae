"""Pictures from prompts, each with noise of its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from .guidance import call_guidance


def noise_seed(seed: int, index: int) -> int:
    """64-bit seed of the noise of the prompt number `index` (from 0) under `seed` (≥ 0).

    Hashed, so that the pictures of one seed share no noise with those of another.
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def noise_generator(seed: int, index: int) -> torch.Generator:
    """The generator of one picture's noise: on the CPU, so that every device draws the same."""
    return torch.Generator("cpu").manual_seed(noise_seed(seed, index))


def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[tuple[int, int]],
    *,
    steps: int,
    guidance: float,
    height: int,
    width: int,
    negative_prompt: str | None = None,
    image: Image.Image | str | None = None,
    image_guidance: float | None = None,
) -> list[Image.Image]:
    """One picture a prompt, as PIL images of `width` × `height` pixels.

    Args:
        pipe: a text-to-image pipeline, or one that edits a picture by instructions.
        prompts: made together in one batch.
        seeds: (seed, index) of each prompt's noise. The noise depends on nothing else: not on the
            batch, nor on the device.
        guidance: weight of classifier-free guidance; 1 and below turn it off.
        negative_prompt: what to steer away from; None leaves it to the pipeline (mostly the empty
            text).
        image: what to edit, a picture or its file; brought to `height` and `width`.
        image_guidance: weight of what the picture shows; None leaves it to the pipeline.
    """
    optional: dict[str, Any] = {"height": height, "width": width}
    if image is not None:
        optional = {"image": [read_image(image, height, width)] * len(prompts)}
    if negative_prompt is not None:
        optional["negative_prompt"] = [negative_prompt] * len(prompts)
    with torch.inference_mode(), call_guidance(pipe, guidance, image_guidance) as given:
        return pipe(
            prompt=list(prompts),
            num_inference_steps=steps,
            generator=[noise_generator(*pair) for pair in seeds],
            **given,
            **optional,
        ).images


def read_image(image: Image.Image | str, height: int, width: int) -> Image.Image:
    """A picture, or the one in a file, as RGB of `width` × `height` pixels."""
    if isinstance(image, str):
        with Image.open(image) as opened:
            return read_image(ImageOps.exif_transpose(opened), height, width)
    image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


def default_guidance(pipe: DiffusionPipeline) -> float:
    """The guidance that the pipeline's own `__call__` uses when none is given."""
    return float(inspect.signature(pipe.__call__).parameters["guidance_scale"].default)


def default_size(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Height and width in pixels that the UNet was trained for."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def cut_off(pipe: DiffusionPipeline, prompt: str) -> str:
    """What the text encoders do not read of a prompt that is too long for them; else "".

    With two text encoders, the longer of the two losses.
    """
    lost = ""
    for suffix in ("", "_2"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        encoder = getattr(pipe, f"text_encoder{suffix}", None)
        if tokenizer is None or encoder is None:
            continue
        limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if len(prompt.encode()) + 2 <= limit:  # a token is a byte at least
            continue
        # The last place is for the end of the text.
        read = tokenizer(prompt, truncation=False, verbose=False, return_offsets_mapping=True)
        tokens, places = read["input_ids"], read["offset_mapping"]
        rest = prompt[places[limit - 1][0] :].strip() if len(tokens) > limit else ""
        lost = max(lost, rest, key=len)
    return lost
