from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPModel, CLIPTokenizer

from edgegen.training.denoising import DenoisingModule, text_encoder_of
from edgegen.training.optimization import step_generator
from edgegen.training.samples import SampleGrid


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )


def tiny_module(clip_folder: Path, **options: object) -> DenoisingModule:
    scheduler = DDPMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup": 0, "steps": 9}
    clip = CLIPModel.from_pretrained(clip_folder)
    return DenoisingModule(tiny_unet(), clip, scheduler, optimizer, **options)


class Data:
    """What a pipeline needs of the data module."""

    def __init__(self, vae_folder: Path, clip_folder: Path) -> None:
        self.vae = AutoencoderKL.from_pretrained(vae_folder)
        self.tokenizer = CLIPTokenizer.from_pretrained(clip_folder)


BATCHES = [
    (
        torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(n)),
        torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(n)),
    )
    for n in range(6)
]


def fit(module: DenoisingModule, folder: Path, **options: object) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_steps": 3, **options},
    )
    trainer.fit(module, DataLoader(BATCHES, batch_size=None))
    return trainer


# The condition


@torch.no_grad()
def test_text_encoder_is_the_text_half_of_the_clip(clip_folder: Path) -> None:
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    encoder = text_encoder_of(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    captions = ["thing 3, noto style", "", "round tag7, fluent-3d style"]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden = clip.text_model(ids).last_hidden_state
    assert torch.equal(encoder(ids)[0], hidden)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    # A deep copy: training the CLIP on would not move the condition.
    clip.text_model.embeddings.token_embedding.weight.add_(1)
    assert torch.equal(encoder(ids)[0], hidden)


@torch.no_grad()
def test_a_pipeline_conditions_as_training_does(clip_folder: Path, vae_folder: Path) -> None:
    module = tiny_module(clip_folder)
    data = Data(vae_folder, clip_folder)
    pipe = module.pipeline(data)
    captions = ["thing 3, noto style", "round tag7"]
    trained, negative = pipe.encode_prompt(captions, "cpu", 1, True)
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = data.tokenizer(captions, **options).input_ids
    assert torch.equal(trained, module.text_encoder(ids)[0])
    # Guidance's empty caption is the one that captions are dropped to.
    empty = data.tokenizer(["", ""], **options).input_ids
    assert torch.equal(negative, module.text_encoder(empty)[0])


# Training


def test_seeds_that_follow_each_other_share_no_noise() -> None:
    """The numbers that seed the generators of 131,072 steps lie apart."""

    class Module:
        device = torch.device("cpu")

        class trainer:
            accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    starts = [step_generator(Module(), seed, 0).initial_seed() for seed in range(12)]
    assert starts[0] == 0
    for number, start in enumerate(starts):
        for other in starts[number + 1 :]:
            apart = (start - other) % 2**32
            assert min(apart, 2**32 - apart) > 2**27
    Module.trainer.global_step = 10**6
    assert step_generator(Module(), 0, 0).initial_seed() == 1024 * 10**6


def test_timesteps_are_stratified_and_noise_differs_by_place(clip_folder: Path) -> None:
    module = tiny_module(clip_folder, seed=3)

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 0

    def draw(batch_idx: int = 0, seed: int = 3, **place: int):
        module._trainer = type("T", (Trainer,), place)()
        module.seed = seed
        return module.noise(torch.zeros(50, 4, 4, 4), batch_idx)

    noise, timesteps = draw()
    # One in each fiftieth of the 1000 steps.
    assert sorted((timesteps // 20).tolist()) == list(range(50))
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert all(torch.equal(a, b) for a, b in zip(draw(), (noise, timesteps), strict=True))
    assert torch.equal(draw(batch_idx=7)[0], noise)  # the step counts, not the batch
    others = [
        draw(global_step=1),
        draw(seed=4),
        draw(seed=2**32 - 1),
        draw(world_size=2, global_rank=1),
        draw(batch_idx=1, accumulate_grad_batches=2),
        draw(batch_idx=1, accumulate_grad_batches=2, world_size=2),
        draw(batch_idx=1, accumulate_grad_batches=2, world_size=2, global_rank=1),
    ]
    sums = {x.double().sum().item() for x, _ in [(noise, timesteps), *others]}
    assert len(sums) == 7  # (rank 1 of 2) and (second batch of one rank) share a slot


def test_shifted_timesteps_are_the_noise_of_another_resolution(clip_folder: Path) -> None:
    """t / (1 − t) grows by the shift (Esser et al. 2024, equation 23), and stays stratified."""
    module = tiny_module(clip_folder, seed=3, shift=3.0)
    trainer = {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0, "global_step": 0}
    module._trainer = type("T", (), trainer)()
    shifted = module.noise(torch.zeros(400, 1, 1, 1), 0)[1].double().sort().values
    module.shift = 1.0
    uniform = module.noise(torch.zeros(400, 1, 1, 1), 0)[1].double().sort().values
    odds = [(t + 0.5) / (1000 - t - 0.5) for t in (shifted, uniform)]
    inner = slice(20, 380)  # at the ends whole steps are too coarse for odds
    assert torch.allclose(odds[0][inner] / odds[1][inner], torch.tensor(3.0).double(), rtol=0.1)
    assert (shifted > 500).double().mean() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match=r"module\.shift=0"):
        tiny_module(clip_folder, shift=0)


@pytest.mark.parametrize("text_lr", [None, 1e-3])
def test_weights_and_average_against_a_plain_loop(
    clip_folder: Path, tmp_path: Path, text_lr: float | None
) -> None:
    module = tiny_module(clip_folder, ema_decay=0.9, text_lr=text_lr)
    fit(module, tmp_path, gradient_clip_val=1.0)

    plain = tiny_module(clip_folder, text_lr=text_lr)
    unet, encoder = plain.unet.train(), plain.text_encoder
    both = torch.nn.ModuleDict({"unet": unet, "text": encoder})
    averaged = {name: p.detach().clone() for name, p in both.named_parameters()}
    decayed = [p for p in unet.parameters() if p.ndim > 1]
    rest = [p for p in unet.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0}]
    if text_lr is not None:
        groups.append({"params": encoder.parameters(), "weight_decay": 0, "lr": text_lr})
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    scheduler = plain.scheduler
    for step, (latents, tokens) in enumerate(BATCHES[:3]):
        generator = torch.Generator().manual_seed(step * 1024)
        noise = torch.randn(2, 4, 16, 16, generator=generator)
        uniform = (torch.tensor([0.0, 0.5]) + torch.rand(1, generator=generator)) % 1
        timesteps = (uniform * 1000).long()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        text = encoder(tokens)[0]
        output = unet(noisy.contiguous(memory_format=torch.channels_last), timesteps, text).sample
        target = scheduler.get_velocity(latents, noise, timesteps)
        alpha = scheduler.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        weight = snr.clamp(max=5) / (snr + 1)
        loss = (weight * (output - target).square().mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        # diffusers warms the decay up: min(decay, (1 + n) / (10 + n)) at update n + 1.
        decay = 0 if step == 0 else min(0.9, (1 + step) / (10 + step))
        for name, p in both.named_parameters():
            averaged[name] = decay * averaged[name] + (1 - decay) * p.detach()
    trained = torch.nn.ModuleDict({"unet": module.unet, "text": module.text_encoder})
    for name, p in trained.named_parameters():
        torch.testing.assert_close(p, both.get_parameter(name), rtol=1e-3, atol=2e-4, msg=name)
    copies = torch.nn.ModuleDict(zip(("unet", "text"), module.averaged(), strict=True))
    got = dict(copies.named_parameters())
    for name, wanted in averaged.items():
        torch.testing.assert_close(got[name], wanted, rtol=1e-3, atol=2e-4, msg=name)
    # What is sampled from is the average, not the last weights.
    name = "unet.conv_in.weight"
    assert not torch.allclose(got[name], trained.get_parameter(name), atol=2e-4)
    start, end = (m.text_encoder.state_dict() for m in (tiny_module(clip_folder), module))
    moved = max(float((start[key] - end[key]).abs().max()) for key in start)
    assert moved == 0 if text_lr is None else 1e-3 < moved < 1e-2


def test_the_text_encoder_stays_as_it_is(clip_folder: Path, tmp_path: Path) -> None:
    module = tiny_module(clip_folder)
    before = {k: v.clone() for k, v in module.text_encoder.state_dict().items()}
    fit(module, tmp_path)
    assert not module.text_encoder.training
    assert all(torch.equal(v, before[k]) for k, v in module.text_encoder.state_dict().items())
    assert not any(p.requires_grad for p in module.text_encoder.parameters())


@pytest.mark.parametrize("compile", [False, True])
def test_weights_are_saved_once(clip_folder: Path, compile: bool) -> None:
    keys = tiny_module(clip_folder, compile=compile).state_dict().keys()
    unet = [key for key in keys if not key.startswith("text_encoder.")]
    assert unet == [f"unet.{key}" for key in tiny_unet().state_dict()]


def test_without_an_average_the_last_weights_are_exported(
    clip_folder: Path, tmp_path: Path
) -> None:
    module = tiny_module(clip_folder, ema_decay=None)
    fit(module, tmp_path)
    assert module.ema is None
    for key, value in module.averaged()[0].state_dict().items():
        assert torch.equal(value, module.unet.state_dict()[key])


def test_averages_of_other_weights_are_refused(clip_folder: Path) -> None:
    checkpoint: dict = {}
    tiny_module(clip_folder, ema_decay=0.9).on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"set module\.text_lr as it was"):
        tiny_module(clip_folder, ema_decay=0.9, text_lr=1e-3).on_load_checkpoint(checkpoint)


# What comes out


def test_exported_pipeline_draws_with_averaged_weights(
    clip_folder: Path, vae_folder: Path, tmp_path: Path
) -> None:
    module = tiny_module(clip_folder, ema_decay=0.5)
    fit(module, tmp_path)
    data = Data(vae_folder, clip_folder)
    module.export(tmp_path / "model", data)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    averaged = module.averaged()[0].state_dict()
    for key, value in loaded.unet.state_dict().items():
        torch.testing.assert_close(value, averaged[key].half().float(), rtol=0, atol=0)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert module.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_grids_are_drawn_from_the_same_noise_and_leave_training_alone(
    clip_folder: Path, vae_folder: Path, tmp_path: Path
) -> None:
    runs = []
    for name, callbacks in (
        ("with", [SampleGrid(str(tmp_path / "grids"), ["thing 1", "thing 2"], 2, 2, steps=1)]),
        ("without", []),
    ):
        module = tiny_module(clip_folder)
        data = Data(vae_folder, clip_folder)
        trainer_data = lightning.LightningDataModule()
        trainer_data.vae, trainer_data.tokenizer = data.vae, data.tokenizer
        trainer_data.train_dataloader = lambda: DataLoader(BATCHES, batch_size=None)
        torch.manual_seed(0)
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / name,
            max_steps=5,
            callbacks=callbacks,
        )
        trainer.fit(module, datamodule=trainer_data)
        runs.append((module.unet.state_dict(), module.unet.training, torch.get_rng_state()))
    grids = sorted((tmp_path / "grids").iterdir())
    assert [path.name for path in grids] == ["step_000002.png", "step_000004.png"]
    assert Image.open(grids[0]).size == (128, 64)
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(value, runs[1][0][key]) for key, value in runs[0][0].items())
    assert torch.equal(runs[0][2], runs[1][2])
