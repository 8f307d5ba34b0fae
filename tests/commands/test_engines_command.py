from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from edgegen.commands.engines import main


def engines(source: Path, folder: Path, *arguments: str) -> dict[str, float]:
    threads = torch.get_num_threads()
    common = [f"model.source={source}", "prompts=a fox", "steps=3", f"output_dir={folder}"]
    try:
        main([*common, *arguments])
    finally:
        torch.set_num_threads(threads)
    return json.loads((folder / "metrics.json").read_text())


def test_full_precision_alone(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = engines(
        tiny_pipeline_folder, tmp_path, "engines=[eager,channels_last]", "rounds=6", "batch=2"
    )
    assert metrics["cost/speed_eager"] == 1
    assert metrics["cost/speed_eager_n"] == 6
    assert metrics["cost/speed_channels_last"] > 0
    assert metrics["cost/cpu_seconds_eager"] > 0
    assert "eager" in capsys.readouterr().out
    assert (tmp_path / "engines.txt").is_file()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_integers(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    metrics = engines(tiny_pipeline_folder, tmp_path, "engines=[eager,int8,int8_bf16]", "rounds=6")
    for name in ("int8", "int8_bf16"):
        assert 10 < metrics[f"quality/sqnr_db_{name}"] < 60
    low, ratio, high = (metrics[f"cost/speed_int8{end}"] for end in ("_lo", "", "_hi"))
    assert 0 < low <= ratio <= high


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (
            "engines=[int8]",
            "must be a list of eager, channels_last, compiled, bf16, int8, int8_bf16",
        ),
        ("engines=eager", "must be a list of"),
        ("threads=0", "threads=0: must be a whole number, 1 or more"),
        ("batch=0", "batch=0"),
    ],
)
def test_refusals(
    argument: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([argument, f"output_dir={tmp_path / 'run'}"])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
