from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.data import DataLoader

import edgegen
from edgegen.training.light_autoencoder import LightAutoencoderModule

OPTIMIZER = {"lr": 5e-3, "schedule": "constant", "warmup": 0, "steps": 9}


def tiny(teacher: AutoencoderKL, **changes: Any) -> AutoencoderTiny:
    levels = len(teacher.config.block_out_channels)
    torch.manual_seed(0)
    given = {
        "latent_channels": teacher.config.latent_channels,
        "encoder_block_out_channels": (8,) * levels,
        "decoder_block_out_channels": (8,) * levels,
        "num_encoder_blocks": (1,) * levels,
        "num_decoder_blocks": (1,) * levels,
    }
    return AutoencoderTiny(**{**given, **changes})


@pytest.fixture
def teacher(vae_folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(vae_folder).eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


@torch.no_grad()
def test_the_loss_by_hand(teacher: AutoencoderKL, pictures: torch.Tensor) -> None:
    teacher.register_to_config(scaling_factor=0.3)
    module = LightAutoencoderModule(tiny(teacher), teacher, OPTIMIZER, latents=0.5)
    module.log_dict = lambda values: None  # type: ignore[method-assign]
    loss = module.training_step(pictures, 0)
    latents = 0.3 * teacher.encode(pictures).latent_dist.mode()
    error = module.model.decoder(latents) - pictures
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    pixels = 0.5 * error.abs().mean() + 2 * error.square().mean() + 0.5 * slopes
    away = (module.model.encoder(pictures) - latents).square().mean()
    torch.testing.assert_close(loss, pixels + 0.5 * away, rtol=1e-3, atol=1e-4)
    assert not any("teacher" in name for name in module.state_dict())


def test_it_learns_and_stands_in_for_the_teacher(
    teacher: AutoencoderKL, pictures: torch.Tensor, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipe = edgegen.load(tiny_pipeline_folder)
    pipe.vae.register_to_config(scaling_factor=0.5)
    module = LightAutoencoderModule(tiny(pipe.vae), pipe.vae, OPTIMIZER)

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        wanted = module._latents(pictures)
        found, decoded = module.model.encode(pictures).latents, module.model.decode(wanted).sample
        return float((found - wanted).square().mean()), float((decoded - pictures).square().mean())

    before = errors()
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=60,
    )  # fmt: skip
    trainer.fit(module, DataLoader([pictures] * 60, batch_size=None))
    after = errors()
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]
    module.export(tmp_path / "light", None)
    light = edgegen.load(tiny_pipeline_folder, vae=tmp_path / "light")
    assert isinstance(light.vae, AutoencoderTiny)
    with torch.no_grad():
        latents = light.vae.encode(pictures).latents * light.vae.config.scaling_factor
        decoded = light.vae.decode(latents / light.vae.config.scaling_factor).sample
        # Trained in channels_last, where some processors add up in another order.
        own = module.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        assert torch.equal(latents, own.encode(pictures).latents)
        assert torch.equal(decoded, own.decode(latents).sample)
    light.set_progress_bar_config(disable=True)
    pipe.set_progress_bar_config(disable=True)
    sizes = [each("a fox", num_inference_steps=1).images[0].size for each in (pipe, light)]
    assert sizes[0] == sizes[1]


def test_other_latents_are_refused(teacher: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="latent channels"):
        LightAutoencoderModule(tiny(teacher, latent_channels=9), teacher, OPTIMIZER)
    deeper = len(teacher.config.block_out_channels) + 1
    sizes = {f"{half}coder_block_out_channels": (8,) * deeper for half in ("en", "de")}
    blocks = {f"num_{half}coder_blocks": (1,) * deeper for half in ("en", "de")}
    with pytest.raises(ValueError, match="levels"):
        LightAutoencoderModule(tiny(teacher, **sizes, **blocks), teacher, OPTIMIZER)
