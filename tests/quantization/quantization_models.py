"""Tiny random pipelines: two levels, attention at the lower one on the way down and in the middle,
skip connections at both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from tiny_text import letter_tokenizer, text_encoder

WIDTH = 16  # of text features
TOKENS = 5


def make_unet(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    unet = UNet2DConditionModel(**{**settings, **changes}).eval()
    for parameter in unet.parameters():  # random biases and norms too, so that nothing cancels
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return unet


def make_pipe(**changes: Any) -> Any:
    """Without text encoder: takes text features."""
    unet = make_unet(**changes)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=None,
        tokenizer=None,
        # So that a random network's latents stay bounded.
        scheduler=DPMSolverMultistepScheduler(prediction_type="sample", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_text_pipe(folder: Path) -> Any:
    """With a text encoder that reads 24 letters."""
    pipe = make_pipe()
    tokenizer = letter_tokenizer(folder)
    torch.manual_seed(0)
    encoder = text_encoder(tokenizer, WIDTH).eval()
    made = StableDiffusionPipeline(
        vae=pipe.vae,
        unet=pipe.unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=pipe.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def make_editor(folder: Path) -> Any:
    """An InstructPix2Pix pipeline with the same text encoder."""
    parts = make_text_pipe(folder).components
    names = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    made = StableDiffusionInstructPix2PixPipeline(
        **{name: parts[name] for name in names},
        unet=make_unet(in_channels=8),
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: Any, steps: int = 3, **settings: Any) -> torch.Tensor:
    """Latents of a run, always from the same noise and texts."""
    inputs: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
        "height": 16,
        "width": 16,
    }
    if pipe.text_encoder is None:
        made = torch.randn(2, 1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(7))
        inputs |= {"prompt_embeds": made[0], "negative_prompt_embeds": made[1]}
    else:
        inputs["prompt"] = "a fox"
    with torch.no_grad():
        return pipe(**{**inputs, **settings}).images


def unet_inputs(batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 8, 8, generator=generator)
    return sample, torch.tensor(500), torch.randn(batch, TOKENS, WIDTH, generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
