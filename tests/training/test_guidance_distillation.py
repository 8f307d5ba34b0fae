"""Guidance distilled into one evaluation: the loss by hand, and what comes out of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.data import DataLoader
from transformers import CLIPModel

from edgegen.pipelines.tokenizers import load_tokenizer
from edgegen.sampling.guidance import guidance_embedding
from edgegen.training.guidance import GuidanceModule, draw_scales

OPTIMIZER = {"lr": 3e-3, "schedule": "constant", "warmup": 0, "steps": 9}


def make_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@pytest.fixture
def make(clip_folder: Path) -> Any:
    def build(scale: Any = 4.0, **options: Any) -> GuidanceModule:
        unet = make_unet()
        return GuidanceModule(
            copy.deepcopy(unet),
            unet,
            CLIPModel.from_pretrained(clip_folder),
            load_tokenizer(clip_folder),
            DDPMScheduler(prediction_type="v_prediction"),
            OPTIMIZER,
            scale,
            gamma=None,
            **options,
        )

    return build


def fit(module: GuidanceModule, steps: int) -> list[float]:
    seen: list[float] = []

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/loss"]))

    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    tokens = torch.randint(3, 50, (4, 12), generator=generator)
    data = DataLoader([(a, b) for a, b in zip(latents, tokens, strict=True)] * steps, batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        callbacks=[Losses()],
    )
    trainer.fit(module, data)
    return seen


def test_the_first_loss_by_hand(make: Any) -> None:
    module = make()
    (loss,) = fit(module, 1)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    tokens = torch.randint(3, 50, (4, 12), generator=generator)
    noise, times = make_noise(latents)
    alpha = DDPMScheduler().alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    unet = make_unet()
    with torch.no_grad():
        text = module.text_encoder(tokens)[0]
        empty = module.text_encoder(module.empty[None])[0].repeat(4, 1, 1)
        given, without = unet(noisy, times, text).sample, unet(noisy, times, empty).sample
    # The student begins as the teacher: what it lacks is 3 times the difference of the branches.
    assert loss == pytest.approx(float((3 * (given - without)).square().mean()), rel=1e-4)


@torch.no_grad()
def lack(module: GuidanceModule, scale: float) -> float:
    """Mean squared error of the student to the teacher under guidance, always on the same."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    tokens = torch.randint(3, 50, (4, 12), generator=generator)
    text = module.text_encoder(tokens)[0]
    empty = module.text_encoder(module.empty[None])[0].repeat(4, 1, 1)
    condition = None
    if module.width is not None:
        condition = guidance_embedding(torch.full((4,), scale), module.width)
    found = []
    for time in range(50, 1000, 100):
        alpha = DDPMScheduler().alphas_cumprod[time]
        noise = torch.randn(latents.shape, generator=generator)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        unet = module._teacher[0]
        given, without = unet(noisy, time, text).sample, unet(noisy, time, empty).sample
        target = without + scale * (given - without)
        out = module.unet(noisy, time, text, timestep_cond=condition).sample
        found.append(float((out - target).square().mean()))
    return sum(found) / len(found)


def make_noise(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first step, as `DenoisingModule` draws it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    offset = torch.rand(1, generator=generator)
    uniform = (torch.arange(4) / 4 + offset) % 1
    return noise, (uniform * 1000).long().clamp_max(999)


def test_the_student_alone_learns_and_is_exported_without_the_teacher(
    make: Any,
) -> None:
    module = make()
    before = lack(module, 4.0)
    fit(module, 60)
    assert lack(module, 4.0) < 0.8 * before
    teacher = module._teacher[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            teacher.state_dict().values(), make_unet().state_dict().values(), strict=True
        )
    )
    assert not any("teacher" in name for name in module.state_dict())


def test_a_range_of_scales_becomes_an_input(make: Any) -> None:
    module = make([2.0, 8.0], width=16)
    assert module.unet.config.time_cond_proj_dim == 16
    assert all(p.requires_grad for p in module.unet.parameters())
    before = lack(module, 7.0)
    fit(module, 60)
    assert lack(module, 7.0) < 0.9 * before
    scales = torch.cat([draw_scales(module, module.scales, 1, 64, batch) for batch in range(4)])
    assert 2 <= scales.min() < 2.5
    assert 7.5 < scales.max() <= 8
    # diffusers' pipeline then evaluates one branch, at the scale that it is given.
    unet = module.averaged()[0]
    seen: list[Any] = []

    def watch(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0].shape[0], kwargs["timestep_cond"]))

    unet.register_forward_pre_hook(watch, with_kwargs=True)
    pipe = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(1, 5, 16)
    with torch.no_grad():
        pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            guidance_scale=5.0,
            num_inference_steps=2,
            output_type="latent",
            height=64,
            width=64,
        )
    assert [batch for batch, _ in seen] == [1, 1]
    assert torch.allclose(seen[0][1], guidance_embedding(torch.tensor([5.0]), 16), atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, [3.0], [5.0, 2.0], True, "7"])
def test_scales_that_are_none(make: Any, scale: Any) -> None:
    with pytest.raises(ValueError, match="scale="):
        make(scale)


def test_text_is_not_trained(make: Any) -> None:
    with pytest.raises(ValueError, match=r"module\.text_lr"):
        make(3.0, text_lr=1e-3)
