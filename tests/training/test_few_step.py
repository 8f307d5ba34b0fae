"""One step for two, against diffusers' DDIM."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from test_denoising import Data
from test_guidance_distillation import make_unet
from torch.utils.data import DataLoader
from transformers import CLIPModel

from edgegen.losses.diffusion import diffuse, leap_target, parts_of
from edgegen.training.few_step import FewStepModule
from edgegen.training.guidance import draw_scales

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OPTIMIZER = {"lr": 3e-3, "schedule": "constant", "warmup": 0, "steps": 99}
GENERATOR = torch.Generator().manual_seed(1)
SOURCE, TARGET = torch.randn(2, 4, 4, 8, 8, generator=GENERATOR)
TOKENS = torch.randint(3, 50, (4, 12), generator=GENERATOR)


@pytest.fixture
def make(clip_folder: Path) -> Any:
    def build(steps: Any = 2, kind: str = "v_prediction", **changes: Any) -> FewStepModule:
        ours = {"scale", "text_lr", "guided", "untold", "sampling", "truth"} & changes.keys()
        options = {key: changes.pop(key) for key in ours}
        given = {k: v for k, v in make_unet().config.items() if k[0] != "_"}
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**{**given, **changes}).eval()
        return FewStepModule(
            copy.deepcopy(unet),
            unet,
            CLIPModel.from_pretrained(clip_folder),
            DDPMScheduler(**BETAS, prediction_type=kind),
            OPTIMIZER,
            steps,
            gamma=None,
            **{"guided": "time_cond_proj_dim" not in changes, **options},
        )

    return build


def ddim(module: FewStepModule, steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        **BETAS,
        prediction_type=module.scheduler.config.prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_parts_and_leaps_are_those_of_ddim(make: Any, kind: str) -> None:
    scheduler = ddim(make(kind=kind), 4)
    noisy, prediction = torch.randn(2, 3, 4, 8, 8)
    for place, time in enumerate(scheduler.timesteps):
        made = scheduler.step(prediction, time, noisy)
        now = scheduler.alphas_cumprod[time].repeat(3)
        later = [*scheduler.timesteps.tolist(), None][place + 1]
        after = torch.ones(3) if later is None else scheduler.alphas_cumprod[later].repeat(3)
        sample, noise = parts_of(prediction, noisy, now, kind)  # type: ignore[arg-type]
        torch.testing.assert_close(sample, made.pred_original_sample, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(
            diffuse(sample, noise, after), made.prev_sample, atol=1e-3, rtol=1e-4
        )
        found = leap_target(noisy, made.prev_sample, now, after)
        torch.testing.assert_close(found[0], sample, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(found[1], noise, atol=2e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_distance_to_two_steps_of_the_teacher(make: Any, kind: str) -> None:
    module = make(2, kind)
    losses: list[float] = []
    module.log = lambda name, value: losses.append(float(value))  # type: ignore[method-assign]

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    module._trainer = Trainer()
    module.training_step((TARGET, TOKENS), 0)
    noise, drawn = module.noise(TARGET, 0)
    text, teacher, scheduler = module.text_encoder(TOKENS)[0], module._teacher[0], ddim(module, 4)
    errors = []
    for number in range(4):
        first = 2 if drawn[number] < 500 else 0  # of the four teacher's steps, noisiest first
        times = scheduler.timesteps[first : first + 2]
        one = slice(number, number + 1)
        noisy = scheduler.add_noise(TARGET[one], noise[one], times[:1])
        landed = noisy
        for time in times:
            out = teacher(landed, time, text[one]).sample
            landed = scheduler.step(out, time, landed).prev_sample
        ours = teacher(noisy, times[0], text[one]).sample  # as the student begins
        # What the student would have to predict for its own step of twice the length.
        a = scheduler.alphas_cumprod[times[0]]
        b = scheduler.alphas_cumprod[times[1] - 250] if first == 0 else torch.tensor(1.0)
        ratio = ((1 - b) / (1 - a)).sqrt()
        sample = (landed - ratio * noisy) / (b.sqrt() - ratio * a.sqrt())
        away = (noisy - a.sqrt() * sample) / (1 - a).sqrt()
        wanted = away if kind == "epsilon" else a.sqrt() * away - (1 - a).sqrt() * sample
        errors.append(float((ours - wanted).square().mean()))
    assert losses == [pytest.approx(sum(errors) / 4, rel=1e-3)]
    assert losses[0] > 1e-6


def test_what_is_exported_samples_at_the_times_that_it_was_trained_for(
    make: Any, vae_folder: Path, clip_folder: Path
) -> None:
    module = make(4)
    module.scheduler.register_to_config(steps_offset=1, clip_sample=True)
    scheduler = module.pipeline(Data(vae_folder, clip_folder)).scheduler
    scheduler.set_timesteps(4)
    trained = module.times[2::2].flip(0)
    assert torch.equal(scheduler.timesteps, trained)
    assert torch.equal(scheduler.alphas_cumprod[trained], module.alpha_bars[2::2].flip(0))
    # Its last step leads to the picture itself, unclipped.
    noisy, prediction = 5 * torch.randn(2, 1, 4, 8, 8)
    last = scheduler.step(prediction, scheduler.timesteps[-1], noisy)
    assert torch.equal(last.prev_sample, last.pred_original_sample)
    sample, _ = parts_of(prediction, noisy, module.alpha_bars[2:3], "v_prediction")
    torch.testing.assert_close(last.prev_sample, sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_share_learns_from_the_pair_itself(make: Any) -> None:
    """The loss of those samples is the plain denoising loss, and of the others the teacher's."""

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    def loss(module: FewStepModule) -> float:
        module._trainer = Trainer()
        module.log = lambda name, value: None  # type: ignore[method-assign]
        return float(module.training_step((TARGET, TOKENS), 0))

    module, mixed = make(1), make(1, truth=0.5)
    taught, found = loss(module), loss(mixed)
    noise, _ = module.noise(TARGET, 0)
    noisy = diffuse(TARGET, noise, module.alpha_bars[[2] * 4])
    text = module.text_encoder(TOKENS)[0]
    out = module.unet(noisy, module.times[2], text).sample
    a = module.alpha_bars[2]
    plain = (out - (a.sqrt() * noise - (1 - a).sqrt() * TARGET)).square().mean((1, 2, 3))
    known = draw_scales(mixed, (0.0, 1.0), mixed.seed + 4, 4, 0) < 0.5
    assert 0 < int(known.sum()) < 4
    alone = []  # what each sample learns from the teacher alone
    for number in range(4):
        few = make(1, truth=0.0)
        few.noise = lambda latents, _, n=number: (noise[n : n + 1], torch.tensor([999]))
        few._trainer, few.log = Trainer(), lambda name, value: None
        one = slice(number, number + 1)
        alone.append(float(few.training_step((TARGET[one], TOKENS[one]), 0)))
    assert taught == pytest.approx(sum(alone) / 4, rel=1e-3)
    wanted = torch.where(known, plain, torch.tensor(alone)).mean()
    assert found == pytest.approx(float(wanted), rel=1e-3)


@torch.no_grad()
def drawn_by(module: FewStepModule, net: Any, steps: int, *beside: torch.Tensor) -> torch.Tensor:
    scheduler, text = ddim(module, steps), module.text_encoder(TOKENS)[0]
    latents = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(7))
    for time in scheduler.timesteps:
        out = net(torch.cat([latents, *beside], 1), time, text).sample
        latents = scheduler.step(out, time, latents).prev_sample
    return latents


@pytest.mark.parametrize("edits", [False, True])
def test_the_student_comes_nearer_to_the_teachers_result(make: Any, edits: bool) -> None:
    module = make(1, in_channels=8 if edits else 4)
    beside = (SOURCE,) if edits else ()
    teacher = module._teacher[0]
    wanted = drawn_by(module, teacher, 2, *beside)
    before = float((drawn_by(module, module.unet, 1, *beside) - wanted).square().mean())
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_steps=100,
    )  # fmt: skip
    batch = (*beside, TARGET, TOKENS)
    trainer.fit(module, DataLoader([batch] * 100, batch_size=None))
    module.eval()
    after = float((drawn_by(module, module.unet, 1, *beside) - wanted).square().mean())
    assert after < 0.7 * before
    assert not any("teacher" in name for name in module.state_dict())
    assert module.kind.__name__.startswith("StableDiffusionInstruct") is edits


def test_both_get_the_same_guidance(make: Any) -> None:
    module = make(2, time_cond_proj_dim=8, scale=[2.0, 6.0], untold=0.0)
    given: list[torch.Tensor] = []
    for net in (module.unet, module._teacher[0]):
        torch.nn.init.normal_(net.time_embedding.cond_proj.weight)
        net.register_forward_pre_hook(
            lambda _, args, kwargs: given.append(kwargs["timestep_cond"]), with_kwargs=True
        )
    module.log = lambda name, value: None  # type: ignore[method-assign]

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    module._trainer = Trainer()
    module.training_step((TARGET, TOKENS), 0)
    assert len(given) == 3
    assert all(torch.equal(each, given[0]) for each in given)
    assert len({tuple(row.tolist()) for row in given[0]}) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3}, r"module\.steps=3: must divide 500"),
        ({"steps": 0}, r"module\.steps=0"),
        ({"steps": True}, r"module\.steps=True"),
        ({"scale": 0.5}, "^scale=0.5"),
        ({"guided": False}, "teacher: takes no guidance as an input"),
        ({"sampling": {"guidance": 2}}, r"module\.sampling\.guidance=2: the teacher has its"),
        ({"untold": 10}, r"module\.untold=10: must be a share"),
        ({"truth": 1}, r"module\.truth=1: must be a share"),
        ({"text_lr": 1e-3}, r"module\.text_lr"),
    ],
)
def test_what_is_refused(make: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changes)
