"""One evaluation in place of an editor's three."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from test_guidance_distillation import make_unet
from torch.utils.data import DataLoader
from transformers import CLIPModel

from edgegen.pipelines.tokenizers import load_tokenizer
from edgegen.sampling.guidance import edit_guidance_embedding
from edgegen.training.guidance import EditGuidanceModule, draw_scales, draw_told

GENERATOR = torch.Generator().manual_seed(1)
BATCH = (
    *torch.randn(2, 4, 4, 8, 8, generator=GENERATOR),
    torch.randint(3, 50, (4, 12), generator=GENERATOR),
)
OPTIMIZER = {"lr": 3e-3, "schedule": "constant", "warmup": 0, "steps": 99}


@pytest.fixture
def make(clip_folder: Path) -> Any:
    def build(scale: Any = 4.0, image_scale: Any = 2.0, **options: Any) -> EditGuidanceModule:
        given = {k: v for k, v in make_unet().config.items() if k[0] != "_"}
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**{**given, "in_channels": 8}).eval()
        return EditGuidanceModule(
            copy.deepcopy(unet),
            unet,
            CLIPModel.from_pretrained(clip_folder),
            load_tokenizer(clip_folder),
            DDPMScheduler(prediction_type="v_prediction"),
            OPTIMIZER,
            scale,
            image_scale,
            **{"gamma": None, **options},
        )

    return build


def fit(module: EditGuidanceModule, steps: int) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=steps,
    )  # fmt: skip
    trainer.fit(module, DataLoader([BATCH] * steps, batch_size=None))


@torch.no_grad()
def lack(module: EditGuidanceModule, scale: float, image_scale: float, told: bool = True) -> float:
    """Mean squared error to the teacher's three branches, always on the same."""
    source, target, tokens = BATCH
    text = module.text_encoder(tokens)[0]
    empty = module.text_encoder(module.empty[None])[0].expand_as(text)
    condition = None
    if module.width is not None and told:
        scales = torch.full((4,), scale), torch.full((4,), image_scale)
        condition = edit_guidance_embedding(*scales, module.width)
    errors = []
    for time in range(50, 1000, 100):
        alpha = DDPMScheduler().alphas_cumprod[time]
        generator = torch.Generator().manual_seed(time)
        noise = torch.randn(target.shape, generator=generator)
        noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
        seen, blind = (torch.cat([noisy, x], 1) for x in (source, torch.zeros_like(source)))
        teacher = module._teacher[0]
        neither = teacher(blind, time, empty).sample
        image, both = teacher(seen, time, empty).sample, teacher(seen, time, text).sample
        wanted = neither + image_scale * (image - neither) + scale * (both - image)
        found = module.unet(seen, time, text, timestep_cond=condition).sample
        errors.append(float((found - wanted).square().mean()))
    return sum(errors) / len(errors)


def test_the_first_loss_by_hand(make: Any) -> None:
    module = make()
    losses: list[float] = []
    module.log = lambda name, value: losses.append(float(value))  # type: ignore[method-assign]

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    module._trainer = Trainer()
    source, target, tokens = BATCH
    module.training_step((source, target, tokens), 0)
    noise, times = module.noise(target, 0)
    alpha = DDPMScheduler().alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    teacher = module._teacher[0]
    with torch.no_grad():
        text = module.text_encoder(tokens)[0]
        empty = module.text_encoder(module.empty[None])[0].repeat(4, 1, 1)
        seen = torch.cat([noisy, source], 1)
        blind = torch.cat([noisy, torch.zeros_like(source)], 1)
        neither = teacher(blind, times, empty).sample
        image, both = teacher(seen, times, empty).sample, teacher(seen, times, text).sample
        wanted = neither + 2.0 * (image - neither) + 4.0 * (both - image)
    # The student begins as the teacher's branch with both conditions.
    assert losses == [pytest.approx(float((both - wanted).square().mean()), rel=1e-4)]


def test_fixed_scales_are_learned_without_an_input(make: Any) -> None:
    module = make()
    before = lack(module, 4.0, 2.0)
    fit(module, 100)
    assert lack(module, 4.0, 2.0) < 0.8 * before
    assert module.unet.config.time_cond_proj_dim is None
    assert not any("teacher" in name for name in module.state_dict())


def test_ranges_become_inputs(make: Any) -> None:
    module = make([2.0, 9.0], [1.0, 3.0], width=16)
    before = lack(module, 8.0, 2.5)
    fit(module, 100)
    assert lack(module, 8.0, 2.5) < 0.9 * before
    assert module.unet.config.time_cond_proj_dim == 16
    drawn = [
        torch.cat([draw_scales(module, ends, 1 + place, 64, batch) for batch in range(4)])
        for place, ends in enumerate(module.scales)
    ]
    assert 2 <= drawn[0].min() < 2.5 < 8 < drawn[0].max() <= 9
    assert 1 <= drawn[1].min() < 1.2 < 2.8 < drawn[1].max() <= 3
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 0.2


def test_told_nothing_it_learns_the_scales_it_is_meant_to_be_used_at(make: Any) -> None:
    sampling = {"steps": 10, "guidance": 8.0, "image_guidance": 2.5}
    module = make([2.0, 3.0], [1.0, 1.5], width=16, untold=0.5, sampling=sampling)
    before = lack(module, 8.0, 2.5, told=False)
    fit(module, 150)
    assert lack(module, 8.0, 2.5, told=False) < 0.9 * before
    assert lack(module, 2.5, 1.2) < lack(module, 2.5, 1.2, told=False)
    told = torch.cat([draw_told(module, 0.5, 64, batch) for batch in range(8)])
    assert 0.25 < told.float().mean() < 0.75
    assert draw_told(module, 0.0, 64, 0).all()


def test_scales_inside_are_no_setting_any_more(make: Any) -> None:
    assert make(sampling={"guidance": 1.0, "steps": 4}).sampling == {"guidance": 1.0, "steps": 4}
    with pytest.raises(ValueError, match=r"module\.sampling\.guidance=2: the student has its"):
        make(sampling={"guidance": 2.0})
    with pytest.raises(ValueError, match=r"module\.sampling: unknown key 'scale'"):
        make(sampling={"scale": 2.0})


@pytest.mark.parametrize(
    ("scales", "said"), [((0.5, 2.0), "^scale=0.5"), ((4.0, [3.0, 1.0]), "image_scale=")]
)
def test_scales_that_are_none(make: Any, scales: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(*scales)
