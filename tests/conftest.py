"""A small world to train in: an emoji dataset of drawn discs, an autoencoder and a CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPModel

from edgegen.data.captions import emoji_tokenizer
from edgegen.data.emoji import STYLES, write_emoji_file
from edgegen.training.contrastive import ContrastiveModule
from tiny_text import letter_tokenizer, text_encoder

GROUPS = ("animals-nature", "food-drink", "flags")


def drawing(seed: int) -> np.ndarray:
    """A disc of one colour on transparent ground: (64, 64, 4) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:64, 0:64] + 0.5
    inside = (x - rng.integers(24, 40)) ** 2 + (y - rng.integers(24, 40)) ** 2 < 20**2
    colour = [*rng.integers(0, 256, 3), 255]
    return np.where(inside[..., None], colour, 0).astype(np.uint8)


@pytest.fixture(scope="session")
def emoji_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 concepts in six styles, every tenth with two skin tones; each split holds some."""
    concepts = [
        {
            "hexcode": f"1F{number:03X}",
            "label": f"thing {number}",
            "tags": [f"tag{number}", "round"],
            "group": GROUPS[number % 3],
            "subgroup": "discs",
        }
        for number in range(60)
    ]
    pictures = [
        (number, tone, style, drawing(number * 100 + tone * 10 + STYLES.index(style)))
        for style in STYLES
        for number in range(60)
        for tone in ((0, 1, 2) if number % 10 == 0 else (0,))
    ]
    path = tmp_path_factory.mktemp("emoji") / "emoji.npz"
    write_emoji_file(path, concepts, pictures)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, emoji_file: Path) -> Path:
    """A random CLIP (width 16, captions of 12 tokens) and its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = emoji_tokenizer(600, 12, str(emoji_file))
    half = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    ends = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=8,
        text_config={
            **half,
            **ends,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 12,
        },
        vision_config={**half, "image_size": 64, "patch_size": 32},
    )

    class Data:
        pass

    data = Data()
    data.tokenizer = tokenizer
    ContrastiveModule(CLIPModel(config), {}).export(folder, data)
    return folder


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL of factor 4 with 4 latent channels."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    tiny_vae().save_pretrained(folder)
    return folder


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


class Graphs:
    """A backend of `torch.compile` that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder, 16 px; its text encoder reads 24 tokens, a letter each."""
    root = tmp_path_factory.mktemp("tiny")
    tokenizer = letter_tokenizer(root)
    torch.manual_seed(0)
    encoder = text_encoder(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(root / "model")
    return root / "model"
