"""Quantization-aware training by the command, in one process and in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import checkpoint

from edgegen.api import load
from edgegen.commands.train import main
from edgegen.quantization.modules import Quantized
from processes import run_two


@pytest.mark.slow
def test_two_processes_see_what_one_sees(
    tiny_pipeline_folder: Path, emoji_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a step Adam's first moment is (1 − β₁) times the mean gradient: of the same samples."""
    monkeypatch.chdir(tmp_path)
    typed = [
        "experiment=quantization/lrqat",
        f"model={tiny_pipeline_folder}",
        f"data.emoji={emoji_file}",
        "data.groups=[animals-nature,food-drink]",
        "module.task.teacher.steps=1",  # each process draws which of a run's steps its samples show
        "module.learning.rank=2",
        "module.optimizer.warmup=0",
        "trainer.precision=32-true",
        "trainer.max_steps=1",
        "checkpoint_every=1",
    ]
    main([*typed, "data.batch_size=4", "output_dir=one"])
    run_two("train", *typed, "data.batch_size=2", "output_dir=two")
    one, two = (moments(folder) for folder in ("one", "two"))
    assert one.abs().max() > 1e-7
    torch.testing.assert_close(two, one, rtol=1e-2, atol=1e-2 * float(one.abs().max()))
    unet = load("two/model").unet
    assert any(isinstance(layer, Quantized) for layer in unet.modules())


def moments(folder: str) -> torch.Tensor:
    states: Any = checkpoint(folder)["optimizer_states"][0]["state"].values()
    return torch.cat([state["exp_avg"].flatten() for state in states])
