"""Tiny random pipelines of every layout, which take text features; full-size UNets on `meta`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from omegaconf import OmegaConf

from edgegen.pipelines.architectures import build

CONFIGS = Path(__file__).parents[2] / "configs"

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
WIDTH = 16  # of text features
TOKENS = 5


def make_unet(depths: tuple[int, ...] = (1, 1, 0), seed: int = 0, **changes: Any) -> Any:
    """A UNet with as many levels as depths; 0 stands for a level without attention."""
    crossed = [depth > 0 for depth in depths]
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (16, 32, 32, 32)[: len(depths)],
        "layers_per_block": 2,
        "down_block_types": tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in crossed),
        "up_block_types": tuple("CrossAttnUpBlock2D" if x else "UpBlock2D" for x in crossed[::-1]),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**{**settings, **changes}).eval()
    for parameter in unet.parameters():  # random biases and norms too, so that nothing cancels
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return unet


LAYOUTS: dict[str, dict[str, Any]] = {
    "sd1": {"depths": (1, 1, 0)},
    "sd2": {"depths": (1, 1, 0), "use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
    "sdxl": {
        "depths": (0, 1, 1),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    },
    "ip2p": {"depths": (1, 1, 0), "in_channels": 8},
    "embedded": {"depths": (1, 1, 1, 0), "layers_per_block": 1},
}


def make_pipe(layout: str = "sd1", scheduler: Any = None) -> Any:
    unet = make_unet(**LAYOUTS[layout])
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    ).eval()
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": None, "tokenizer": None}
    pipe: DiffusionPipeline
    if layout == "sdxl":
        scheduler = scheduler or DDIMScheduler(**BETAS, clip_sample=False)
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        pipe = StableDiffusionXLPipeline(scheduler=scheduler, **parts)
    else:
        cls: Any = StableDiffusionPipeline
        if layout == "ip2p":
            cls = StableDiffusionInstructPix2PixPipeline
            scheduler = scheduler or EulerAncestralDiscreteScheduler(**BETAS)
        elif layout == "sd2":
            scheduler = scheduler or DDIMScheduler(
                **BETAS, clip_sample=False, prediction_type="v_prediction"
            )
        parts |= {"safety_checker": None, "feature_extractor": None}
        scheduler = scheduler or DPMSolverMultistepScheduler(**BETAS)
        pipe = cls(scheduler=scheduler, requires_safety_checker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(batch: int = 1, seed: int = 7) -> dict[str, torch.Tensor]:
    made = torch.randn(2, batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return {"prompt_embeds": made[0], "negative_prompt_embeds": made[1]}


def draw(pipe: Any, steps: int = 4, size: int = 16, batch: int = 1, **settings: Any) -> Any:
    """Latents of a run, always from the same noise and texts."""
    inputs: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
        **texts(batch),
    }
    if isinstance(pipe, StableDiffusionInstructPix2PixPipeline):
        generator = torch.Generator().manual_seed(5)
        inputs["image"] = torch.rand(batch, 3, size, size, generator=generator)
    else:
        inputs |= {"height": size, "width": size}
    if isinstance(pipe, StableDiffusionXLPipeline):
        for name in ("", "negative_"):
            inputs[f"{name}pooled_prompt_embeds"] = inputs[f"{name}prompt_embeds"].mean(1)
    with torch.no_grad():
        return pipe(**{**inputs, **settings}).images


def full_size(name: str) -> Any:
    """The UNet of `configs/component/{name}-unet.yaml`, on `meta`."""
    return build(OmegaConf.to_container(_component(f"{name}-unet")))


def _component(name: str) -> Any:
    config: Any = OmegaConf.load(CONFIGS / "component" / f"{name}.yaml")
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*(_component(base) for base in bases), config)
