"""Trainings of adaptors on the tiny model, and what is done with them afterwards."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_train import STATE, assert_same_bits, checkpoint

from edgegen.commands import generate
from edgegen.commands.train import main
from edgegen.runs.record import read_record
from edgegen.training.clockwork import ClockworkModule
from processes import run_two


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def typed(tiny_pipeline_folder: Path, emoji_file: Path) -> list[str]:
    return [
        "experiment=clockwork/emoji",
        f"model={tiny_pipeline_folder}",
        f"data.emoji={emoji_file}",
        "data.groups=[animals-nature,food-drink]",
        "data.batch_size=2",
        "module.adaptor.width=8",
        "module.teacher.steps=4",
        "module.optimizer.warmup=2",
    ]


def asked(typed: list[str], more: list[str]) -> list[str]:
    """What is typed, without the experiment where `more` names another."""
    named = any(each.startswith("experiment=") for each in more)
    return [each for each in typed if not (named and each.startswith("experiment="))]


def train(typed: list[str], folder: str, steps: int, *more: str) -> dict[str, Any]:
    main([*typed, f"output_dir={folder}", f"trainer.max_steps={steps}", *more])
    return checkpoint(folder)


SOLUTION = ["experiment=clockwork/emoji_solution", "data.distinct=5"]
PLAIN = ["module.trajectories=plain", "data.distinct=5"]


@pytest.mark.parametrize("more", [[], PLAIN, SOLUTION], ids=["unrolled", "kept", "whole runs"])
def test_resumed_equals_never_stopped(
    more: list[str], typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 4, after the checkpoint of step 3; kept trajectories are half made by then."""
    every = "checkpoint_every=3"
    typed = asked(typed, more)
    stores = [[f"module.store={name}"] if more else [] for name in ("store", "other")]
    whole = train(typed, "whole", 6, every, *more, *stores[0])

    def end(module: ClockworkModule, batch: object, batch_idx: int) -> None:
        if module.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ClockworkModule, "on_train_batch_start", end)
        with pytest.raises(SystemExit) as stopped:
            train(typed, "parts", 6, every, *more, *stores[1])
    assert stopped.value.code == 143
    assert read_record("parts")["status"] == "killed"
    assert checkpoint("parts")["global_step"] == 3
    parts = train(typed, "parts", 6, every, *more, *stores[1], "resume=true", "data.workers=1")
    assert parts["global_step"] == 6
    for key in (*STATE, "PromptData"):
        if key in whole:
            assert_same_bits(whole[key], parts[key], key)
    assert all(name.startswith("adaptor.") for name in whole["state_dict"])
    models = [Path(folder, "model", "adaptor.safetensors") for folder in ("whole", "parts")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_from_training_to_pictures(
    typed: list[str], tiny_pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(typed, "first", 3, *PLAIN, "module.store=store")
    weights = "module.weights=first/model/adaptor.safetensors"
    with pytest.raises(SystemExit):  # it is not as wide as that
        train(typed, "run", 3, weights, "module.adaptor.width=16")
    assert "its width is 8, and module.adaptor asks for 16" in capsys.readouterr().err
    train(typed, "run", 3, weights, "module.clock=3")
    metrics = json.loads(Path("run/metrics.json").read_text())
    told = {"loss", "loss_relative", "steps", "params_trained", "params_share", "bytes_peak"}
    assert metrics.keys() == {f"train/{name}" for name in told}
    assert metrics["train/params_trained"] == sum(
        value.numel() for value in load_file("run/model/adaptor.safetensors").values()
    )
    assert metrics["train/bytes_peak"] > 1e8  # of a process with torch in it
    assert 0 < metrics["train/loss_relative"] < 2
    drawn = {}
    for name in ("identity", "run/model/adaptor.safetensors"):
        generate.main(
            [
                f"model={tiny_pipeline_folder}",
                "prompts=thing 3",
                "steps=4",
                "method=[clockwork]",
                f"method.clockwork.predictor={name}",
                f"output_dir={Path(name).stem}",
            ]
        )
        with Image.open(f"{Path(name).stem}/images/000000.png") as image:
            drawn[name] = np.asarray(image.convert("RGB")).astype(int)
    assert not np.array_equal(*drawn.values())


def test_what_is_learned_on_random_weights_of_another_model(typed: list[str]) -> None:
    """As for a full-size model that nobody has downloaded: its components alone."""
    small = (
        "{_class_name: UNet2DConditionModel, sample_size: 8, in_channels: 4, out_channels: 4, "
        "layers_per_block: 1, block_out_channels: [8, 16], "
        "down_block_types: [CrossAttnDownBlock2D, DownBlock2D], "
        "up_block_types: [UpBlock2D, CrossAttnUpBlock2D], "
        "attention_head_dim: 2, cross_attention_dim: 16, norm_num_groups: 4}"
    )
    run = [each for each in typed if not each.startswith(("experiment=", "model="))]
    run += ["experiment=clockwork/sd15", "module.teacher.random_weights=true"]
    run += ["~model.components.unet", f"+model.components.unet={small}"]
    run += ["module.teacher.height=32", "module.teacher.width=64", "trainer.precision=32-true"]
    saved = train(run, "run", 2)
    assert saved["global_step"] == 2
    assert read_record("run")["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["module.clock={drift: 0.1}"], "known beforehand"),
        (["module.trajectories=curly"], "allowed are unrolled, plain"),
        (["module.cut.stage=4"], "stage=4: allowed on this UNet are 1 to 1"),
        (["module.weights=none.safetensors"], "none.safetensors: no such adaptor file"),
        (["module.teacher.scheduler=Magic"], "scheduler 'Magic' is unknown"),
        (["data.prompts_file=none.txt"], "prompts_file=none.txt: no such file"),
        (["data.distinct=1"], "distinct=1: must be the batch size of 2 or more"),
        (["model=sd15"], "model=sd15: says no weights; give model.source="),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str], words: str, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*typed, *arguments, "output_dir=run"])
    assert stopped.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train: ")]
    assert words in line
    assert not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], SOLUTION], ids=["unrolled", "whole runs"])
def test_two_processes_see_what_one_sees(more: list[str], typed: list[str]) -> None:
    """After a step Adam's first moment is (1 − β₁) times the mean gradient: of the same samples."""
    typed = [*asked(typed, more), *more[:1], "trainer.precision=32-true"]
    stores = [[f"module.store={name}-ends"] if more else [] for name in ("one", "two")]
    typed += ["data.distinct=8"] if more else []
    typed += ["trainer.gradient_clip_val=null", "module.optimizer.warmup=0", "checkpoint_every=1"]
    one = train(typed, "one", 1, "data.batch_size=4", *stores[0])
    run_two(
        "train", *typed, *stores[1], "data.batch_size=2", "trainer.max_steps=1", "output_dir=two"
    )
    both = checkpoint("two")
    moments = [
        torch.cat([s["exp_avg"].flatten() for s in c["optimizer_states"][0]["state"].values()])
        for c in (one, both)
    ]
    assert moments[0].abs().max() > 1e-5
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-2, atol=1e-7)
