"""UNets made of another one's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from edgegen.assets import model_folder
from edgegen.pipelines.parts import noise_schedule
from edgegen.pipelines.variants import with_guidance_input, without_highest_attention


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8), torch.tensor([900, 30]), torch.randn(2, 5, 16)


def test_the_efficient_unet_is_the_old_one_without_those_blocks(tmp_path: Path) -> None:
    unet = make()
    unet.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    found = without_highest_attention(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    for block in (unet.down_blocks[0], unet.up_blocks[2]):
        for transformer in block.attentions:  # which then hand on what they get
            transformer.forward = lambda hidden, *_, **__: (hidden,)
    inputs = given()
    with torch.no_grad():
        assert torch.equal(found.eval()(*inputs).sample, unet(*inputs).sample)
    kinds = found.config.down_block_types, found.config.up_block_types
    assert kinds == (
        ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    )
    found.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="no attention at the highest resolution already"):
        without_highest_attention(tmp_path / "again")


def test_a_guidance_input_changes_nothing_at_first() -> None:
    unet = make()
    found = with_guidance_input(unet, 12).eval()
    inputs, condition = given(), torch.randn(2, 12)
    with torch.no_grad():
        expected = unet(*inputs).sample
        assert torch.equal(found(*inputs, timestep_cond=condition).sample, expected)
        found.time_embedding.cond_proj.weight += 1
        assert not torch.equal(found(*inputs, timestep_cond=condition).sample, expected)
    with pytest.raises(ValueError, match="already"):
        with_guidance_input(found)


def test_the_noise_schedule_is_that_of_a_pipeline(tmp_path: Path) -> None:
    own = noise_schedule("emoji")
    read = json.loads((model_folder("emoji") / "scheduler/scheduler_config.json").read_text())
    assert isinstance(own, DDPMScheduler)
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert own.config[key] == read[key]
    with pytest.raises(FileNotFoundError, match="would tell the noise schedule"):
        noise_schedule(tmp_path)
