from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf

from edgegen.cost import CostTracker
from edgegen.data.prompts import PromptData
from edgegen.reuse import Stage, clockwork, load_adaptor, make_adaptor
from edgegen.training.clockwork import ClockworkModule
from edgegen.training.teacher import Teacher

CONFIGS = Path(__file__).parents[2] / "configs"
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
OPTIMIZER = {"lr": 1e-2, "schedule": "constant", "warmup": 0, "steps": 9}


def teacher(**options: Any) -> Teacher:
    model = {"name": "tiny", "components": {"unet": UNET}}
    settings = {"steps": 4, "guidance": 3.0, "random_weights": True}
    return Teacher(model, **{**settings, **options})


def module(taught: Teacher | None = None, **options: Any) -> ClockworkModule:
    torch.manual_seed(0)
    given: dict[str, Any] = {"adaptor": {"width": 8}, "cut": Stage(), **options}
    return ClockworkModule(taught or teacher(), OPTIMIZER, **given)


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., PromptData]:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\nan ox\na cat\n")

    def make(**options: Any) -> PromptData:
        return PromptData(2, **{"prompts_file": str(file), **options})

    return make


class Losses(lightning.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        found = trainer.callback_metrics
        self.seen.append((float(found["train/loss"]), float(found["train/loss_relative"])))


def fit(
    trained: ClockworkModule, data: PromptData, folder: Path, steps: int = 3
) -> list[tuple[float, float]]:
    """Train, and return (loss, loss relative to the identity's) of each step."""
    losses = Losses()
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_steps=steps,
        callbacks=[losses],
    )
    trainer.fit(trained, datamodule=data)
    return losses.seen


# What is trained


@pytest.mark.parametrize("trajectories", ["unrolled", "plain"])
def test_the_adaptor_alone_is_trained(
    trajectories: str, prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    taught = teacher()
    trained = module(taught, trajectories=trajectories)
    before = {name: tensor.clone() for name, tensor in taught.unet.state_dict().items()}
    start = {name: tensor.clone() for name, tensor in trained.adaptor.state_dict().items()}
    fit(trained, prompts(), tmp_path)
    assert all(torch.equal(before[k], v) for k, v in taught.unet.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in taught.unet.parameters())
    assert not taught.unet.training
    moved = [k for k, v in trained.adaptor.state_dict().items() if not torch.equal(start[k], v)]
    assert len(moved) == len(start)
    # The teacher is in no checkpoint, and nothing stays hooked to it.
    assert set(trained.state_dict()) == {f"adaptor.{name}" for name in start}
    assert "forward" not in taught.unet.down_blocks[1].__dict__


def test_the_loss_is_the_identitys_at_first_and_falls_below(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    losses = fit(module(), prompts(), tmp_path, steps=40)
    assert losses[0][1] == 1
    assert sum(relative for _, relative in losses[-5:]) / 5 < 0.95


def test_one_step_against_a_plain_loop(prompts: Callable[..., PromptData], tmp_path: Path) -> None:
    """The first loss by hand: the teacher's run in diffusers' own order of operations."""
    (loss, _), *_ = fit(module(), prompts(), tmp_path, steps=1)
    data, taught = prompts(), teacher()
    data.setup()
    batch = [data.train_set[number] for number in range(2)]
    noise = torch.cat(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s["seed"])) for s in batch]
    )
    text, negative = taught.encode([sample["prompt"] for sample in batch])
    text = torch.cat([negative, text])
    # r_out of stage 1 is what goes into the last upsampler.
    upsampler = taught.unet.up_blocks[1].upsamplers[0]

    def evaluate(sample: Any, time: Any, put: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def hook(_: Any, given: Any) -> Any:
            seen.append(given[0])
            return None if put is None else (put, *given[1:])

        handle = upsampler.register_forward_pre_hook(hook)
        with torch.no_grad():
            out = taught.unet(sample, time, text).sample
        handle.remove()
        return out, seen[0]

    errors, last = [], None
    taught.scheduler.set_timesteps(4)
    latents = noise
    for step, time in enumerate(taught.scheduler.timesteps):
        both = torch.cat([latents, latents])
        out, true = evaluate(both, time)
        if step % 2:  # the untrained adaptor says what was, and the run goes on with that
            errors.append((true - last).square().mean())
            out, _ = evaluate(both, time, put=last)
        else:
            last = true
        without, given = out.chunk(2)
        out = without + 3 * (given - without)
        latents = taught.scheduler.step(out, time, latents).prev_sample
    assert loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_a_teacher_that_takes_the_scale_as_an_input_needs_one_branch(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    unet = UNET | {"time_cond_proj_dim": 8}
    taught = Teacher(
        {"name": "tiny", "components": {"unet": unet}}, 4, guidance=3.0, random_weights=True
    )
    text, negative = taught.encode(["a fox"])
    assert len(text) == 1
    assert negative is None
    outputs = [step.output for step in taught.run(["a fox"], [0])]
    taught.guidance = 5.0
    others = [step.output for step in taught.run(["a fox"], [0])]
    assert not torch.equal(outputs[0], others[0])
    losses = fit(module(taught), prompts(), tmp_path)
    assert losses[0][1] == 1
    assert losses[-1][1] != 1


def test_begins_with_given_weights(prompts: Callable[..., PromptData], tmp_path: Path) -> None:
    taught = teacher()
    first = module(taught, trajectories="plain")
    fit(first, prompts(), tmp_path)
    first.export(tmp_path / "model", None)
    second = module(taught, weights=str(tmp_path / "model" / "adaptor.safetensors"))
    for name, tensor in first.adaptor.state_dict().items():
        assert torch.equal(second.adaptor.state_dict()[name], tensor)
    assert all(p.requires_grad for p in second.adaptor.parameters())
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such adaptor"):
        module(taught, weights="none.safetensors")


def test_exported_it_says_the_same(prompts: Callable[..., PromptData], tmp_path: Path) -> None:
    taught = teacher()
    trained = module(taught)
    fit(trained, prompts(), tmp_path)
    trained.export(tmp_path / "model", None)
    path = tmp_path / "model" / "adaptor.safetensors"
    loaded = load_adaptor(path, taught.unet, Stage())
    steps = {"steps": taught.evaluations, "full": [*range(1, taught.evaluations + 1, 2)]}
    how = {"scheduler": type(taught.scheduler).__name__, "guidance": taught.guidance}
    assert loaded.trained == steps | how
    given = {
        "r_in": torch.randn(2, 8, 4, 4),
        "r_out": torch.randn(2, 16, 4, 4),
        "time": torch.randn(2, 32),
        "text": torch.randn(2, 5, 16),
    }
    with torch.no_grad():
        assert torch.equal(loaded(**given), trained.adaptor.eval()(**given))
    with clockwork(taught.unet, 2, path) as method:
        assert method.predictor.conv_in.weight.shape == trained.adaptor.conv_in.weight.shape
    another = teacher()
    with torch.no_grad():
        another.unet.conv_in.weight += 1
    with pytest.raises(ValueError, match="another base model"):
        load_adaptor(path, another.unet, Stage())


# Kept trajectories


def test_kept_trajectories_are_made_once_and_teach_the_same(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    fresh = fit(module(trajectories="plain"), prompts(distinct=4), tmp_path, steps=6)
    taught, calls = teacher(), []
    taught.unet.conv_in.register_forward_hook(lambda *_: calls.append(None))
    kept = module(taught, trajectories="plain", store=str(tmp_path / "store"))
    losses = fit(kept, prompts(distinct=4), tmp_path, steps=6)
    assert len(calls) == 2 * 4  # two batches of four steps
    for (loss, relative), (expected, ratio) in zip(losses, fresh, strict=True):
        assert loss == pytest.approx(expected, rel=5e-3)
        assert relative == pytest.approx(ratio, rel=5e-3)
    again = module(taught, trajectories="plain", store=str(tmp_path / "store"))
    assert fit(again, prompts(distinct=4), tmp_path, steps=6) == losses
    assert len(calls) == 2 * 4
    # Other sampling is another store.
    for other in (teacher(guidance=2.0), teacher(steps=5), teacher(scheduler="DDIM")):
        trained = module(other, trajectories="plain", store=str(tmp_path / "store"))
        fit(trained, prompts(distinct=4), tmp_path, steps=1)
    assert len(list((tmp_path / "store").iterdir())) == 4


def test_a_store_needs_a_number_of_samples(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    trained = module(trajectories="plain", store=str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"give data\.distinct=N"):
        fit(trained, prompts(), tmp_path)


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectories": "curled"}, "allowed are unrolled, plain"),
        ({"store": "somewhere"}, "keeps plain trajectories"),
        ({"clock": {"drift": 0.1}}, "known beforehand"),
        ({"clock": 1}, "nothing is predicted"),
        ({"cut": Stage(3)}, "stage=3: allowed on this UNet are 1 to 2"),
        ({"adaptor": {"inputs": ["time"]}}, "one of r_in"),
    ],
)
def test_settings_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        module(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: must be a whole number"),
        ({"steps": 2000, "scheduler": "DDIM"}, "steps=2000: DDIM: "),
        ({"guidance": -1}, "guidance=-1"),
        ({"dtype": "int8"}, "dtype=int8: must be one of float32"),
        ({"scheduler": "Psychic"}, "scheduler 'Psychic' is unknown"),
        ({"height": 33}, "height=33: must be a multiple of 8 pixels"),
        ({"random_weights": False}, "says no weights"),
    ],
)
def test_teachers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        teacher(**options)
    assert "\n" not in str(caught.value)


def test_second_order_schedulers_make_more_evaluations(
    prompts: Callable[..., PromptData], tmp_path: Path
) -> None:
    taught = teacher(scheduler="HeunDiscrete")
    trained = module(taught)
    assert len(trained.passes) == taught.evaluations == 7
    fit(trained, prompts(), tmp_path, steps=1)


def test_a_teacher_in_half_precision(prompts: Callable[..., PromptData], tmp_path: Path) -> None:
    trained = module(teacher(dtype="bfloat16"))
    assert trained.adaptor.conv_in.weight.dtype == torch.float32
    losses = fit(trained, prompts(), tmp_path, steps=2)
    assert losses[0][1] == pytest.approx(1, abs=1e-6)
    assert losses[0][0] > 0


def test_the_embedded_adaptor_is_small() -> None:
    """Within 2 % of the parameters and of the work of the UNet, as configured."""
    settings: Any = OmegaConf.load(CONFIGS / "experiment/emoji/unet.yaml").module.unet
    options = {k: v for k, v in OmegaConf.to_container(settings).items() if k != "_target_"}
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**options)
    config: Any = OmegaConf.load(CONFIGS / "experiment/clockwork/emoji.yaml").module
    adaptor = make_adaptor(unet, Stage(config.cut.stage), **OmegaConf.to_container(config.adaptor))

    def count(network: Any) -> int:
        return sum(p.numel() for p in network.parameters())

    assert 0 < count(adaptor) <= 0.02 * count(unet)
    with CostTracker({"unet": unet}) as work, torch.no_grad():
        text = torch.zeros(1, 32, 192, device="meta")
        unet(torch.zeros(1, 6, 16, 16, device="meta"), torch.zeros((), device="meta"), text)
    with CostTracker({"adaptor": adaptor}) as own, torch.no_grad():
        shapes = [(1, 64, 8, 8), (1, 128, 8, 8), (1, 256), (1, 32, 192)]
        adaptor(*(torch.zeros(shape, device="meta") for shape in shapes))
    assert 0 < own.total_macs <= 0.02 * work.total_macs
