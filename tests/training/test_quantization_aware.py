"""Quantization-aware training of a UNet on its teacher's trajectories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPModel, CLIPTokenizer

from edgegen import api
from edgegen.data.prompts import PromptData
from edgegen.quantization.modules import Quantized
from edgegen.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from edgegen.training.denoising import text_encoder_of
from edgegen.training.quantization import QuantizationModule
from edgegen.training.teacher import Teacher
from edgegen.training.trajectories import TrajectoryTask

UNET = {  # one level; attention in the middle alone
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
SPEC: dict[str, Any] = {"weights": {"bits": 3, "range": "mse"}, "activations": {"bits": 8}}
OPTIMIZER = {"lr": 3e-3, "lr_scales": 1e-3, "schedule": "linear", "warmup": 1, "steps": 6}


def teacher(**options: Any) -> Teacher:
    torch.manual_seed(0)
    model = {"name": "tiny", "components": {"unet": UNET}}
    return Teacher(model, **{"steps": 4, "guidance": 3.0, "random_weights": True, **options})


def module(taught: Teacher | None = None, way: str = "lrqat", **options: Any) -> Any:
    task = TrajectoryTask(taught or teacher(), options.pop("store", None))
    optimizer = options.pop("optimizer", OPTIMIZER)
    torch.manual_seed(0)
    settings = {"way": way, "rank": 4, **options}
    return QuantizationModule(task, SPEC, settings, optimizer)


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., PromptData]:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\nan ox\na cat\n")

    def make(batch_size: int = 2, **options: Any) -> PromptData:
        return PromptData(batch_size, **{"prompts_file": str(file), **options})

    return make


class Losses(lightning.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def fit(trained: Any, data: PromptData, steps: int, resume: Path | None = None) -> list[float]:
    losses = Losses()
    callbacks: list[Any] = [losses]
    if resume is not None:
        callbacks.append(LastCheckpoint(resume, 2))
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=resume is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    last = None if resume is None else resume / "last.ckpt"
    ready = last is not None and last.exists()
    trainer.fit(trained, datamodule=data, ckpt_path=last if ready else None, weights_only=True)
    return losses.seen


def test_the_first_loss_by_hand(prompts: Callable[..., PromptData]) -> None:
    """Sample i at evaluation (i + offset) mod 4 of the teacher's own run, guided."""
    trained = module()
    (loss,) = fit(trained, prompts(), 1)
    data, taught, fresh = prompts(), teacher(), module()
    data.setup()
    batch = [data.train_set[number] for number in range(2)]
    noise = torch.cat(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s["seed"])) for s in batch]
    )
    text, negative = taught.encode([sample["prompt"] for sample in batch])
    both = torch.cat([negative, text])

    def guided(unet: Any, latents: torch.Tensor, time: Any) -> torch.Tensor:
        with torch.no_grad():
            out = unet(torch.cat([latents, latents]), time, both).sample
        without, given = out.chunk(2)
        return without + 3 * (given - without)

    errors = []
    latents = noise
    for time in taught.scheduler.timesteps:
        target = guided(taught.unet, latents, time)
        found = guided(fresh.student, latents, time)
        errors.append((found - target).square().mean((1, 2, 3)))
        latents = taught.scheduler.step(target, time, latents).prev_sample
    expected = [float(errors[o % 4][0] + errors[(o + 1) % 4][1]) / 2 for o in range(4)]
    assert min(abs(loss - each) / each for each in expected) < 1e-4
    assert len({round(each, 6) for each in expected}) == 4


@pytest.mark.parametrize(
    ("width", "dtype", "most"),
    [(None, "float32", 1e-9), (8, "float32", 1e-9), (8, "bfloat16", 1e-3)],
)
def test_the_teacher_itself_loses_nothing(
    prompts: Callable[..., PromptData], width: int | None, dtype: str, most: float
) -> None:
    """With its scale outside, as two branches, and with it as an input."""
    model = {"name": "tiny", "components": {"unet": UNET | {"time_cond_proj_dim": width}}}
    torch.manual_seed(0)
    taught = Teacher(model, 4, guidance=3.0, random_weights=True, dtype=dtype)
    task, data = TrajectoryTask(taught), prompts()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    found = task.losses(task.network(), batch, torch.Generator().manual_seed(0))
    assert found["loss_relative"] < most


def test_the_teacher_stays_and_the_student_comes_closer(
    prompts: Callable[..., PromptData],
) -> None:
    taught = teacher()
    before = {name: tensor.clone() for name, tensor in taught.unet.state_dict().items()}
    trained = module(taught, optimizer={**OPTIMIZER, "schedule": "constant"})
    data = prompts(4)
    data.setup()
    batch = next(iter(data.train_dataloader()))  # a sample for each of four evaluations

    def error() -> float:
        generator = torch.Generator().manual_seed(0)
        return float(trained.task.losses(trained.student, batch, generator)["loss"])

    first = error()
    fit(trained, prompts(4), 16)
    assert error() < 0.9 * first
    assert all(torch.equal(before[k], v) for k, v in taught.unet.state_dict().items())
    assert all(name.startswith("student.") for name in trained.state_dict())
    assert not any(isinstance(each, Quantized) for each in taught.unet.modules())


@pytest.mark.parametrize("way", ["lsq", "lrqat", "peqa"])
def test_resumed_equals_never_stopped(
    way: str, prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    whole = module(way=way)
    losses = fit(whole, prompts(), 5)
    first = fit(module(way=way), prompts(), 3, tmp_path / "kept")
    torch.manual_seed(99)  # what a new process would draw is of no account
    again = QuantizationModule(TrajectoryTask(teacher()), SPEC, {"way": way, "rank": 4}, OPTIMIZER)
    rest = fit(again, prompts(), 5, tmp_path / "kept")
    assert [*first, *rest] == losses
    found = again.state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert not torch.equal(
        next(iter(whole.learned.scales)), next(iter(module(way=way).learned.scales))
    )


def test_kept_trajectories_are_made_once(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    taught, calls = teacher(), []
    slow = {**OPTIMIZER, "lr": 3e-4, "lr_scales": 1e-4}  # or what float16 rounds off would grow
    fresh = fit(module(taught, optimizer=slow), prompts(distinct=4), 4)
    taught.unet.conv_in.register_forward_hook(lambda *_: calls.append(None))
    trained = module(taught, store=str(tmp_path / "store"), optimizer=slow)
    calls.clear()  # those of calibration, and of the copy
    losses = fit(trained, prompts(distinct=4), 4)
    made = len(calls) - 4  # the student is a copy, hook and all
    assert made == 2 * 4
    assert losses == pytest.approx(fresh, rel=5e-2)  # kept in float16
    untold = module(taught, store=str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"give data\.distinct=N"):
        fit(untold, prompts(), 1)


def save_pipeline(folder: Path, vae: Path, clip: Path) -> None:
    torch.manual_seed(0)
    settings = {key: value for key, value in UNET.items() if key != "_class_name"}
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae),
        unet=UNet2DConditionModel(**settings),
        text_encoder=text_encoder_of(CLIPModel.from_pretrained(clip)),
        tokenizer=CLIPTokenizer.from_pretrained(clip),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def test_exported_it_draws_the_same(
    vae_folder: Path, clip_folder: Path, prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    """Loaded from its folder, the pipeline says what the student said, to the bit."""
    save_pipeline(tmp_path / "plain", vae_folder, clip_folder)
    model = {"name": "tiny", "source": str(tmp_path / "plain")}
    taught = Teacher(model, steps=2, guidance=3.0)
    trained = module(taught)
    fit(trained, prompts(), 3)
    trained.export(tmp_path / "model", None)
    pipe = api.load(tmp_path / "model")
    assert any(isinstance(each, Quantized) for each in pipe.unet.modules())
    sides = 2 * (pipe.unet.config.sample_size,)
    sample = torch.randn(1, pipe.unet.config.in_channels, *sides)
    text = torch.randn(1, 5, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        expected = trained.student(sample, 500, text).sample
        assert torch.equal(pipe.unet(sample, 500, text).sample, expected)
    assert torch.equal(pipe.vae.decoder.conv_in.weight, taught.pipe.vae.decoder.conv_in.weight)
    again = fit(trained, prompts(), 4)  # exporting has not ended the training
    assert len(again) == 4


def test_random_weights_and_a_teacher_in_half_precision(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    trained = module(teacher(dtype="bfloat16"), way="peqa")
    assert {p.dtype for p in trained.learned.scales} == {torch.float32}
    fit(trained, prompts(), 1)
    trained.export(tmp_path / "model", None)
    assert (tmp_path / "model" / "unet" / "config.json").is_file()
