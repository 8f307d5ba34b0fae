"""Tiny random editors, and clips that are made up as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgegen.media.clips import Frame

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A token a letter, 24 of them."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24
    )


def make_unet(in_channels: int = 8) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    for name, parameter in unet.named_parameters():
        if "attn1.to_" in name:  # so that attention is far from a mean over all tokens
            parameter.data *= 4
    return unet


def make_pipe(folder: Path, kind: str = "ip2p", scheduler: Any = None) -> Any:
    """`ip2p` or `sd1`; pictures of 16 px, an autoencoder of factor 2."""
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(1)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
        )
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    ).eval()
    edits = kind == "ip2p"
    cls: Any = StableDiffusionInstructPix2PixPipeline if edits else StableDiffusionPipeline
    default = EulerAncestralDiscreteScheduler(**BETAS) if edits else DDIMScheduler(**BETAS)
    pipe = cls(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=make_unet(8 if edits else 4),
        scheduler=scheduler or default,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(number: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A square that wanders over a coloured slope."""
    y, x = np.mgrid[0:height, 0:width]
    slope = np.stack([8 * x, 8 * y, 60 + 0 * x], -1) % 256
    inside = (abs(x - number % width) < 3) & (abs(y - height // 2) < 3)
    return np.where(inside[..., None], [250, 240, 10], slope).astype(np.uint8)


class MadeClip:
    """Frames drawn when they are asked for, at uneven times."""

    def __init__(self, count: int, height: int = 16, width: int = 16) -> None:
        self.name = f"clip of {count}"
        self.time_base = Fraction(1, 90000)
        self.aspect = Fraction(1)
        self.count, self.size = count, (height, width)

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self.count):
            yield Frame(picture(number, *self.size), 3000 * number + 17 * (number % 3), 0)
