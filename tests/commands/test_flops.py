from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants

from edgegen.commands.flops import main
from edgegen.cost import count

PROMISED = {
    "cost/params",
    "cost/gmacs_all",
    "cost/gmacs_conv_linear",
    "cost/tflops_all",
    "cost/tflops_conv_linear",
}


def flops(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`metrics.json` and `run.json` of one run."""
    main([*arguments, f"output_dir={folder}"])
    return tuple(json.loads((folder / name).read_text()) for name in ("metrics.json", "run.json"))


def test_sd15(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    metrics, run = flops(tmp_path, "model=sd15", "steps=8", "guidance=true")
    assert time.monotonic() - start < 60  # seconds when the machine is free
    assert metrics.keys() >= PROMISED
    assert metrics["cost/params"] == 859_520_964
    assert round(metrics["cost/gmacs_all"], 2) == 401.64
    assert round(metrics["cost/gmacs_conv_linear"], 2) == 338.61
    assert round(metrics["cost/tflops_conv_linear"], 2) == 10.84
    assert metrics["cost/tflops_all"] == pytest.approx(8 * 2 * 2 * 401.637e-3, rel=1e-4)
    assert run["status"] == "finished"
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "cost.txt").read_text()
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines() if line}
    assert rows["down_blocks.0"] == ["down_blocks.0", "54.775", "32.897"]
    assert rows["text_encoder"][1:3] == ["123,060,480", "2"]
    assert "12.85 TFLOPs (all), 10.84 TFLOPs (conv+linear)" in printed


def test_without_guidance_and_at_another_size(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    typed = [f"model={tiny_pipeline_folder}", "steps=2"]
    square = ("height=128", "width=128")
    base, _ = flops(tmp_path / "a", *typed, *square)
    plain, _ = flops(tmp_path / "b", *typed, *square, "guidance=false")
    assert 2 * plain["cost/tflops_all"] == pytest.approx(base["cost/tflops_all"])
    wide, _ = flops(tmp_path / "c", *typed, "height=64", "width=256")
    # As many pixels: the convolutions cost the same, attention too.
    assert wide["cost/gmacs_all"] == pytest.approx(base["cost/gmacs_all"])
    small, _ = flops(tmp_path / "d", *typed, "height=64", "width=64")
    assert small["cost/gmacs_all"] < base["cost/gmacs_all"] / 4


def test_a_network_swapped_in(tmp_path: Path) -> None:
    metrics, _ = flops(
        tmp_path, "model=bk-sdm-tiny", "steps=1", "component@model.components.vae=taesd"
    )
    assert metrics["cost/vae_decoder_params"] == 1_222_531


def test_a_model_without_unet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, run = flops(tmp_path, "model=taesd")
    assert {name: metrics[name] for name in PROMISED} == dict.fromkeys(PROMISED)
    assert run["null_metrics"]["cost/params"] == "taesd has no UNet"
    assert metrics["cost/total_params"] == 2_445_063
    assert "vae.encoder" in capsys.readouterr().out


def test_folder(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    metrics, _ = flops(tmp_path, f"model={tiny_pipeline_folder}", "steps=3", "batch=2")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    one = count(unet, torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 24, 16))
    assert metrics["cost/params"] == one.params
    assert metrics["cost/gmacs_all"] == one.macs_all / 1e9
    assert metrics["cost/tflops_all"] == pytest.approx(3 * 2 * 2 * one.macs_all / 1e12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=sd15", "steps=0"], ["steps=0", "1 or more"]),
        (["model=sd15", "steps=2.5"], ["steps=2.5", "whole number"]),
        (["model=sd15", "batch=none"], ["batch=none", "whole number"]),
        (["model=sd15", "guidance=7.5"], ["guidance=7.5", "true or false"]),
        (["model=sd15", "dtype=int8"], ["dtype=int8", "float32, float16, bfloat16"]),
        (["model=sd15", "height=500"], ["height=500", "multiple of 8"]),
        (["model=sd16"], ["sd16", "sd15", "sdxl"]),
        (["model=sd15", "step=8"], ["step", "steps"]),
        (["model=/no/such/folder"], ["/no/such/folder", "no such folder"]),
        (["model=some/thing"], ["some/thing", "cannot be reached"]),
        (["model=custom"], ["source"]),
    ],
)
def test_one_line_for_a_mistake(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        flops(folder, *arguments)
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("flops: error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not folder.exists()


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao speaks when imported")
def test_script(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "flops.py"
    command = [
        sys.executable,
        str(script),
        f"model={tiny_pipeline_folder}",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == (tmp_path / "cost.txt").read_text()
    assert done.stderr == ""
    assert len(script.read_text().splitlines()) <= 30


def test_clockwork_on_sd15(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 1 of arXiv 2312.08128: 10.84 TFLOPs become 7.24."""
    metrics, _ = flops(
        tmp_path,
        *["model=sd15", "steps=8", "guidance=true", "method=[clockwork]"],
        *["method.clockwork.clock=2", "method.clockwork.predictor=identity"],
    )
    assert metrics["cost/tflops_conv_linear"] == pytest.approx(7.243, abs=0.0005)
    assert round(metrics["cost/gmacs_conv_linear"], 2) == 338.61  # a full call
    assert "clockwork" in capsys.readouterr().out.splitlines()[0]


METHODS = ", ".join(
    sorted(path.stem for path in (Path(__file__).parents[2] / "configs/method").glob("*.yaml"))
)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["method=[clockwork,deepcache]"],
            "flops: error: clockwork and deepcache cannot be combined: both decide which blocks "
            "run on a step",
        ),
        (
            ["method.clockwork.clock=3"],
            "flops: error: method: no method is in use; give method=[NAME] as well, NAME one of "
            + METHODS,
        ),
        (
            ["method=[clokwork]"],
            "flops: error: method=clokwork: no such option (did you mean 'clockwork'?); allowed: "
            + METHODS,
        ),
        (
            ["method=[clockwork]", "method.clockwork.clock=0"],
            "flops: error: clock",
        ),
    ],
)
def test_a_method_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        flops(tmp_path / "run", "model=sd15", *arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.strip().startswith(line)
    assert not (tmp_path / "run").exists()


def test_stored_size_of_quantized_weights(tmp_path: Path) -> None:
    plain, _ = flops(tmp_path / "plain", "model=bk-sdm-tiny", "steps=2")
    packed, _ = flops(tmp_path / "w4", "model=bk-sdm-tiny", "steps=2", "method=[w4a8]")
    assert plain["cost/stored_mb"] == pytest.approx(4 * plain["cost/params"] / 1e6)
    assert plain["cost/stored_mb"] / 8 < packed["cost/stored_mb"] < plain["cost/stored_mb"] / 7
    assert packed["cost/gmacs_all"] == plain["cost/gmacs_all"]
    # 32 × 32 bits become 4 × 8, but for the attention products.
    linear = plain["cost/gmacs_conv_linear"] / plain["cost/gmacs_all"]
    wanted = plain["cost/tbops"] * (1 - linear + linear / 32)
    assert packed["cost/tbops"] == pytest.approx(wanted, rel=0.01)


def test_options_of_weights_are_refused(tiny_pipeline_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"model={tiny_pipeline_folder}", "model.vae=taesd", f"output_dir={tmp_path / 'o'}"])
    assert stopped.value.code == 2
    assert "model.vae=taesd: is of weights" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
