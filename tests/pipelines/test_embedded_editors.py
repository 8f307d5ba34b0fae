"""The editors that ship do what they are told, in diffusers alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from edgegen import assets
from edgegen.data.edits import RULES, change
from edgegen.data.instructions import PHRASINGS
from edgegen.media.clips import open_clip

EDITORS = [name for name in ("emoji-edit", "emoji-edit-fast") if name in assets.model_names()]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    frame = next(iter(open_clip(assets.ROOT / "clips" / "big_buck_bunny.mp4"))).pixels
    return Image.fromarray(frame).crop((56, 0, 200, 144)).resize((96, 96), Image.Resampling.BOX)


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("edit", ["sepia", "night", "inverted"])
def test_an_exact_edit(name: str, edit: str, picture: Image.Image) -> None:
    """It lies at most half as far from the true target as the source does."""
    folder = assets.ROOT / name
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    said = json.loads((folder / "sampling.json").read_text())
    guidance = said.get("guidance", 1.0), said.get("image_guidance", 1.0)
    if pipe.unet.config.time_cond_proj_dim is not None:
        guidance = 1.0, 1.0
    made = pipe(
        PHRASINGS[f"rule/{edit}"][0],
        image=picture,
        num_inference_steps=said["steps"],
        guidance_scale=guidance[0],
        image_guidance_scale=guidance[1],
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    source = np.asarray(picture)
    target = RULES[edit](source)
    assert change(np.asarray(made), target) < 0.5 * change(source, target)
