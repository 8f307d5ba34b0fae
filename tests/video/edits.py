"""Clips edited by tiny editors, and the same by diffusers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from PIL import Image
from video_models import BETAS, picture

from edgegen.media.clips import open_clip
from edgegen.sampling.generate import noise_generator, noise_seed
from edgegen.video import VideoEditor

INSTRUCTION = "make it red"
SEED, STEPS = 5, 3


def edit(pipe: Any, clip: Any, folder: Path, anchors: Any = 3, **settings: Any) -> np.ndarray:
    """(frames, H, W, 3) uint8."""
    output = folder / f"edited{len(list(folder.iterdir()))}"
    own = {key: settings.pop(key) for key in ("own", "schedule", "chunk") if key in settings}
    settings = {"steps": STEPS, "seed": SEED, "guidance": 4.0, **settings}
    VideoEditor(pipe, anchors, **own).edit(clip, output, INSTRUCTION, **settings)
    return np.stack([frame.pixels for frame in open_clip(output)])


def plain(pipe: Any, frames: Sequence[int], **scales: float) -> np.ndarray:
    """The pictures as the diffusers pipeline edits them, from the editor's noise."""
    noise = torch.randn(1, 4, 8, 8, generator=noise_generator(SEED, 0))
    generators = [torch.Generator().manual_seed(noise_seed(SEED, 1)) for _ in frames]

    def reseed(_: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for generator in generators:
            generator.manual_seed(noise_seed(SEED, step + 2))
        return tensors

    images = pipe(
        [INSTRUCTION] * len(frames),
        image=[Image.fromarray(picture(number)) for number in frames],
        num_inference_steps=STEPS,
        **{"guidance_scale": 4.0, **scales},
        latents=noise.repeat(len(frames), 1, 1, 1),
        generator=generators,
        callback_on_step_end=reseed,
    ).images
    return np.stack([np.asarray(image) for image in images])


SCHEDULERS = {
    "ancestral": EulerAncestralDiscreteScheduler(**BETAS),
    "ddim": DDIMScheduler(**BETAS, clip_sample=False),
    "dpm": DPMSolverMultistepScheduler(**BETAS),
    "sde": DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
    "heun": HeunDiscreteScheduler(**BETAS),
    "pndm": PNDMScheduler(**BETAS, skip_prk_steps=True),
    "lcm": LCMScheduler(**BETAS),
}
