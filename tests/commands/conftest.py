"""An editor small enough to run in tests: random weights, 16 px pictures."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)


@pytest.fixture(scope="session")
def editor_folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InstructPix2Pix model of 16 px, in a diffusers folder."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder, safety_checker=None)
    torch.manual_seed(0)
    config = {**pipe.unet.config, "in_channels": 8}
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=UNet2DConditionModel.from_config(config),
        scheduler=EulerAncestralDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("editor") / "model"
    pipe.save_pretrained(folder)
    return folder
