"""Whole trainings of tiny models through `scripts/train.py`'s own entry point."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import lightning
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from edgegen.commands.train import main
from edgegen.data import photos
from edgegen.runs.record import read_record
from edgegen.training.autoencoder import AutoencoderModule
from edgegen.training.checkpoints import AtomicCheckpointIO
from edgegen.training.denoising import DenoisingModule
from processes import run_two, start

MODULES = {"vae": AutoencoderModule, "unet": DenoisingModule}


EXPORT = AutoencoderModule.export


def few_samples() -> None:
    """Let autoencoders centre their latents over 8 pictures."""
    AutoencoderModule.export = partialmethod(EXPORT, samples=8)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoencoderModule, "export", EXPORT)  # to be put back
    few_samples()


@pytest.fixture(scope="module")
def latent_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture
def typed(
    emoji_file: Path,
    vae_folder: Path,
    clip_folder: Path,
    latent_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, list[str]]:
    """What is typed for a tiny training of each kind, but for `output_dir` and steps."""
    monkeypatch.setattr(photos, "packaged_photos", lambda: [])
    common = [f"+data.emoji={emoji_file}", "data.batch_size=2", "module.optimizer.warmup=2"]
    return {
        "vae": [
            "experiment=emoji/vae",
            *common,
            "+data.validation_samples=2",
            "module.model.block_out_channels=[4,4,4]",
            "module.model.norm_num_groups=2",
            "trainer.val_check_interval=3",
        ],
        "clip": [
            "experiment=emoji/clip",
            *common,
            "+data.tokenizer.size=600",
            "+data.tokenizer.max_length=16",
            "module.model.config.text_config.vocab_size=600",
            "module.model.config.text_config.max_position_embeddings=16",
            "module.model.config.text_config.hidden_size=16",
            "module.model.config.text_config.intermediate_size=16",
            "module.model.config.text_config.num_hidden_layers=1",
            "module.model.config.vision_config.hidden_size=16",
            "module.model.config.vision_config.intermediate_size=16",
            "module.model.config.vision_config.num_hidden_layers=1",
            "trainer.val_check_interval=2",
        ],
        "unet": [
            "experiment=emoji/unet",
            *common,
            f"vae={vae_folder}",
            f"clip={clip_folder}",
            "data.views=2",
            f"data.cache={latent_cache}",
            "module.compile=false",
            "module.ema_decay=0.5",
            "module.unet.block_out_channels=[8]",
            "module.unet.attention_head_dim=[2]",
            "module.unet.down_block_types=[DownBlock2D]",
            "module.unet.up_block_types=[UpBlock2D]",
            "module.unet.norm_num_groups=4",
            "module.unet.in_channels=4",
            "module.unet.out_channels=4",
            "module.unet.cross_attention_dim=16",
            "callbacks.samples.every=4",
            "+callbacks.samples.steps=1",
            "callbacks.samples.prompts=[a,b]",
            "+callbacks.samples.columns=2",
        ],
    }


def train(kind: list[str], folder: str, steps: int, *more: str) -> dict:
    """Run to the end and return its last checkpoint, which must hold no code."""
    main([*kind, f"output_dir={folder}", f"trainer.max_steps={steps}", *more])
    return checkpoint(folder)


def checkpoint(folder: str | Path) -> dict:
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_bits(left: object, right: object, path: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same_bits(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same_bits(*pair, f"{path}[{number}]")
    else:
        assert left == right, path


STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "ema")


def test_a_second_stretch_begins_with_the_averaged_weights_of_the_first(
    typed: dict[str, list[str]],
) -> None:
    train(typed["unet"], "first", 2)
    own = ("experiment=", "vae=", "clip=", "module.unet.", "module.compile=", "module.ema_decay=")
    second = [each for each in typed["unet"] if not each.startswith(own)]
    second += ["experiment=emoji/unet_second", "base=first/model", "data.groups=[food-drink]"]
    second += ["module.optimizer.schedule_options.num_decay_steps=1", "module.optimizer.lr=0"]
    train(second, "second", 2)
    paths = [Path(run) / "model" / "unet" for run in ("first", "second")]
    states = [UNet2DConditionModel.from_pretrained(path).state_dict() for path in paths]
    assert_same_bits(*states)  # nothing was learned at a rate of zero


def test_precision_is_what_the_cpu_computes(
    typed: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    places = [
        f"edgegen.{name}.emulates_bfloat16" for name in ("commands.train", "training.trainers")
    ]
    for emulated, expected in ((False, "bf16-mixed"), (True, "32-true")):
        for place in places:
            monkeypatch.setattr(place, lambda device, emulated=emulated: emulated)
        train(typed["unet"], f"told-{emulated}", 1)
        record = json.loads(Path(f"told-{emulated}/run.json").read_text())
        assert record["precision"] == expected
        assert "emulates bfloat16" not in capfd.readouterr().err
    train([*typed["unet"], "trainer.precision=bf16-mixed"], "told-chosen", 1)
    assert "trainer.precision=32-true is faster here" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["vae", "unet"])
def test_resumed_equals_never_stopped(
    kind: str, typed: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed in step 5, after the checkpoint of step 4; it goes on with two loader processes.
    steps, every = 7, "checkpoint_every=4"
    whole = train(typed[kind], "whole", steps, every)

    def end(module: lightning.LightningModule, batch: object, batch_idx: int) -> None:
        if module.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MODULES[kind], "on_train_batch_start", end)
        with pytest.raises(SystemExit) as stopped:
            train(typed[kind], "parts", steps, every)
    assert stopped.value.code == 143
    assert read_record("parts")["status"] == "killed"
    half = checkpoint("parts")
    assert half["global_step"] == 4
    parts = train(typed[kind], "parts", steps, every, "resume=true", "data.workers=2")
    assert parts["global_step"] == steps
    (data,) = [name for name in whole if name.endswith("Data")]
    assert whole[data] == {"samples_seen": 14}
    assert half[data] == {"samples_seen": 8}
    for key in (*STATE, data):
        if key in whole:
            assert_same_bits(whole[key], parts[key], key)
    if kind == "unet":
        assert whole["ema"]["optimization_step"] == steps
    for path in Path("whole/model").rglob("*.safetensors"):
        assert path.read_bytes() == Path("parts", *path.parts[1:]).read_bytes(), path
    assert read_record("parts")["status"] == "finished"


def test_a_slice_ends_with_a_checkpoint_and_the_next_goes_on(typed: dict[str, list[str]]) -> None:
    schedule = "module.optimizer.steps=3"
    whole = train(typed["clip"], "whole", 3, schedule)
    part = train(typed["clip"], "parts", 2, schedule)
    assert part["global_step"] == 2
    Path("parts").rename("moved")
    parts = train(typed["clip"], "moved", 3, schedule, "resume=true")
    assert_same_bits(whole["state_dict"], parts["state_dict"])
    assert_same_bits(whole["optimizer_states"], parts["optimizer_states"])
    assert [path.name for path in Path("moved/checkpoints").iterdir()] == ["last.ckpt"]
    # Run once more, there is nothing to do, and nothing changes.
    again = train(typed["clip"], "moved", 3, schedule, "resume=true")
    assert_same_bits(parts["state_dict"], again["state_dict"])


def test_nothing_is_lost_when_time_is_up(typed: dict[str, list[str]]) -> None:
    part = train(typed["clip"], "run", -1, "trainer.max_time=00:00:00:01")
    done = json.loads(Path("run/metrics.json").read_text())["train/steps"]
    assert part["global_step"] == done > 0
    # The limit is for all stretches together: this one has no time left.
    again = train(typed["clip"], "run", -1, "trainer.max_time=00:00:00:01", "resume=true")
    assert again["global_step"] == done
    more = train(typed["clip"], "run", done + 1, "resume=true")
    assert more["global_step"] == done + 1


def test_curves_of_every_stretch_are_kept(typed: dict[str, list[str]]) -> None:
    log = "trainer.log_every_n_steps=1"
    train(typed["clip"], "run", 2, log)
    train(typed["clip"], "run", 3, log, "resume=true")
    steps = []
    for path in sorted(Path("run/logs").glob("metrics*.csv")):
        with path.open() as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert sorted(steps) == [0, 1, 2]


def test_accumulated_batches_differ_and_average_once(typed: dict[str, list[str]]) -> None:
    drawn: list[torch.Tensor] = []
    noise = DenoisingModule.noise

    def keep(module: DenoisingModule, latents: torch.Tensor, batch_idx: int) -> object:
        drawn.append(noise(module, latents, batch_idx)[0])
        return noise(module, latents, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenoisingModule, "noise", keep)
        saved = train(typed["unet"], "run", 2, "trainer.accumulate_grad_batches=2")
    assert len(drawn) == 4
    assert len({tensor.sum().item() for tensor in drawn}) == 4
    assert saved["ema"]["optimization_step"] == 2
    assert saved["LatentData"] == {"samples_seen": 8}


def test_a_step_is_finished_when_time_is_up(typed: dict[str, list[str]]) -> None:
    limit = ["trainer.max_time=00:00:00:01", "trainer.accumulate_grad_batches=3"]
    saved = train(typed["clip"], "run", -1, *limit)
    batches = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    assert batches == 3 * saved["global_step"] > 0


# Two processes


def test_sharded_training_is_that_of_whole_copies(typed: dict[str, list[str]]) -> None:
    plain = [*typed["unet"], "module.ema_decay=null", "module.optimizer.muon=false"]
    plain += ["data.cache=cache"]  # empty: both processes fill it
    plain += ["trainer.precision=32-true", "module.optimizer.steps=2", "callbacks.samples.every=2"]
    plain += ["trainer.gradient_clip_val=1000"]  # so that sums of gradients for means are seen
    run_two("train", *plain, "trainer.max_steps=2", "output_dir=copies")
    shards = [*plain, "output_dir=shards"]
    run_two("train", *shards, "trainer.max_steps=1", trainer="fsdp")
    run_two("train", *shards, "trainer.max_steps=2", "resume=true", trainer="fsdp")
    runs = ("copies", "shards")
    moments = [checkpoint(run)["optimizer_states"][0]["state"].values() for run in runs]
    norms = [sorted(float(each["exp_avg"].norm()) for each in states) for states in moments]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3, abs=1e-7)  # in another order there
    states = [
        UNet2DConditionModel.from_pretrained(f"{run}/model/unet").state_dict() for run in runs
    ]
    for key, value in states[0].items():
        # Adam divides by |g|, which makes rounding large where g is near 0.
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=2e-4, msg=key)
    assert Path("shards/samples/step_000002.png").exists()


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("clip", [], "ContrastiveModule cannot be sharded: use trainer=ddp"),
        ("unet", [], "sharded weights are not averaged: set module.ema_decay=null"),
        ("unet", ["module.ema_decay=null"], "Muon needs whole matrices"),
        ("unet", ["+module.text_lr=1e-3"], "only the UNet can be sharded"),
    ],
)
def test_what_cannot_be_sharded(
    kind: str,
    more: list[str],
    said: str,
    typed: dict[str, list[str]],
    refused: Callable[..., str],
) -> None:
    alone = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "output_dir=run"]
    line = refused(*typed[kind], *alone, *more)
    assert "trainer=fsdp: " in line
    assert said in line
    assert not Path("run").exists()


# What is left


def test_what_a_training_leaves(typed: dict[str, list[str]]) -> None:
    train(typed["unet"], "unet", 4)
    assert Path("unet/samples/step_000004.png").exists()
    pipe = StableDiffusionPipeline.from_pretrained("unet/model")
    assert pipe("thing 3, noto style", num_inference_steps=1, output_type="np").images.shape == (
        (1, 64, 64, 3)
    )
    metrics = json.loads(Path("unet/metrics.json").read_text())
    assert metrics.keys() == {"train/loss", "train/steps"}
    train(typed["clip"], "clip", 2)
    metrics = json.loads(Path("clip/metrics.json").read_text())
    assert {"val/cells_top1", "val/concepts_top5", "train/loss"} <= metrics.keys()
    assert all(0 <= metrics[f"val/{name}_top5"] <= 1 for name in ("cells", "concepts"))
    assert CLIPModel.from_pretrained("clip/model").config.projection_dim == 128
    assert CLIPTokenizer.from_pretrained("clip/model")("thing 3").input_ids[-1] < 600
    train(typed["vae"], "vae", 3)
    assert "val/psnr_emoji" in json.loads(Path("vae/metrics.json").read_text())
    assert AutoencoderKL.from_pretrained("vae/model").config.scaling_factor == 1


# Checkpoints


@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_checkpoint_broken_off_leaves_the_old_one(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"step": 1}, path)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, {"write": "fsync", "replace": "replace"}[where], fail)
    with pytest.raises(KeyboardInterrupt):
        plugin.save_checkpoint({"step": 2, "weights": torch.zeros(1000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_training_saves_through_the_atomic_writer(
    typed: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that dies while it writes its second checkpoint goes on from its first.
    save, calls = AtomicCheckpointIO.save_checkpoint, []

    def dies(plugin: AtomicCheckpointIO, checkpoint: dict, path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(plugin, checkpoint, path)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", dies)
        with pytest.raises(SystemExit) as stopped:
            train(typed["clip"], "run", 3, "checkpoint_every=1")
    assert stopped.value.code in (1, 130)
    assert read_record("run")["status"] == "killed"
    assert checkpoint("run")["global_step"] == 1
    assert train(typed["clip"], "run", 3, "resume=true")["global_step"] == 3


# Mistakes


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train: ")]
        return line

    return run


def test_an_existing_run_is_not_overwritten(
    typed: dict[str, list[str]], refused: Callable[..., str]
) -> None:
    train(typed["clip"], "run", 1)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    line = refused(*typed["clip"], "output_dir=run", "trainer.max_steps=2")
    assert "run/checkpoints/last.ckpt exists: continue with resume=true" in line
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to train: name an experiment"),
        (["experiment=emoji/vea"], "vea"),
        (["experiment=emoji/unet"], "is required"),
        (["experiment=emoji/vae", "trainer.max_steps=-1"], "training has no end"),
        (["experiment=emoji/vae", "seed=4294967296"], "seed=4294967296: must be a whole"),
        (["experiment=emoji/vae", "checkpoint_every=0"], "checkpoint_every=0: must be a whole"),
        (["experiment=emoji/vae", "+data.emoji=no.npz"], "no.npz"),
        (["experiment=emoji/vae", "data.photo_folders=[nowhere]"], "nowhere does not exist"),
        (["experiment=emoji/unet", "vae=nowhere", "clip=nowhere"], "nowhere"),
        (["experiment=emoji/unet", "vae=VAE", "clip=CLIP", "data.groups=[pets]"], "group 'pets'"),
        (["experiment=emoji/unet", "vae=VAE", "clip=CLIP", "+data.styles=[oil]"], "style 'oil'"),
        (["experiment=emoji/unet", "vae=VAE", "clip=CLIP", "data.limit=0"], "no items"),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str],
    words: str,
    refused: Callable[..., str],
    emoji_file: Path,
    vae_folder: Path,
    clip_folder: Path,
) -> None:
    places = {"VAE": str(vae_folder), "CLIP": str(clip_folder)}
    arguments = [
        f"{key}={places.get(value, value)}"
        for key, _, value in (x.partition("=") for x in arguments)
    ]
    if not any(x.startswith("+data.emoji=") for x in arguments) and arguments:
        arguments.append(f"+data.emoji={emoji_file}")
    assert words in refused(*arguments)
    assert not Path("outputs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_trainer_without_its_hardware(
    typed: dict[str, list[str]], refused: Callable[..., str]
) -> None:
    line = refused(*typed["clip"], "trainer=gpu", "output_dir=run")
    assert "trainer=gpu" in line
    assert "gpu" in line.lower()
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("logger", "flag"),
    [("tensorboard", "_TENSORBOARD_AVAILABLE"), ("wandb", "_WANDB_AVAILABLE")],
)
def test_an_absent_logger_is_named(
    logger: str,
    flag: str,
    typed: dict[str, list[str]],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("lightning.fabric.loggers", "lightning.pytorch.loggers"):
        found = sys.modules.get(f"{module}.{logger}")
        for name in (flag, "_TENSORBOARDX_AVAILABLE"):
            if hasattr(found, name):
                monkeypatch.setattr(found, name, False)
    line = refused(*typed["clip"], f"logger={logger}", "output_dir=run")
    assert line.endswith(f"logger={logger}: not installed: pip install 'edgegen[{logger}]'")
    assert not Path("run").exists()


def curve(folder: str) -> dict[int, float]:
    """Training loss by step, from the CSV file that is always there."""
    with Path(folder, "logs/metrics.csv").open() as file:
        return {
            int(row["step"]): float(row["train/loss"])
            for row in csv.DictReader(file)
            if row["train/loss"]
        }


def test_tensorboard_has_the_curves(typed: dict[str, list[str]]) -> None:
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(typed["clip"], "run", 3, "logger=tensorboard", "trainer.log_every_n_steps=1")
    events = EventAccumulator("run/logs").Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found.keys() == {0, 1, 2}
    assert found == pytest.approx(curve("run"), rel=1e-6)
    assert "val/cells_top1" in events.Tags()["scalars"]


def test_weights_and_biases_keeps_a_run_for_later(
    typed: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the wandb extra")
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(Path("home").absolute()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = ("logger=wandb", "logger.offline=true", "trainer.log_every_n_steps=1")
    train(typed["clip"], "run", 2, *offline)
    (kept,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"train/loss" in content
    assert b"val/cells_top1" in content
    assert curve("run").keys() == {0, 1}


# Several processes


@pytest.mark.slow
def test_two_processes_see_what_one_sees(emoji_file: Path, tmp_path: Path) -> None:
    """After one step Adam's first moment is (1 − β₁) times the gradient, whose mean over two ranks
    is that of one process with twice the batch, if the ranks have seen the same samples together.
    The latents' noise depends on the rank, so its variance is made to vanish."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
    vae.save_pretrained("start")
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/tiny.yaml").write_text(
        "# @package _global_\n"
        "module:\n"
        "  _target_: edgegen.training.autoencoder.AutoencoderModule\n"
        "  kl: 0\n"
        "  model: {_target_: edgegen.pipelines.parts.autoencoder, folder: start}\n"
        "  optimizer: {lr: 1.0e-4, schedule: constant, warmup: 0, steps: 2}\n"
        "data:\n"
        "  _target_: edgegen.data.modules.PictureData\n"
        f"  emoji: {emoji_file}\n"
        "  photo_fraction: 0\n"
        "  validation_samples: 2\n"
        "  batch_size: 4\n"
        "trainer: {precision: 32-true, val_check_interval: 100, gradient_clip_val: null}\n"
    )
    arguments = ["--config-dir", str(tmp_path / "mine"), "experiment=tiny", "checkpoint_every=1"]
    one = train(arguments, "one", 1)
    two = start(
        *("train", *arguments, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
        *("data.batch_size=2", "trainer.max_steps=1"),
        prepare=few_samples,
    )
    two.join(300)
    assert two.exitcode == 0, Path("train.log").read_text()[-2000:]
    # Both processes wrote into one folder, though each has a clock of its own for its name.
    (folder,) = Path("outputs/train").iterdir()
    assert read_record(folder)["status"] == "finished"
    both = checkpoint(folder)
    assert both["PictureData"] == one["PictureData"] == {"samples_seen": 4}
    moments = [
        torch.cat([s["exp_avg"].flatten() for s in c["optimizer_states"][0]["state"].values()])
        for c in (one, both)
    ]
    assert moments[0].abs().max() > 1e-3
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-3, atol=1e-6)
