from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants

import edgegen
from edgegen.commands import profile as command
from edgegen.cost import count
from edgegen.cost.roofline import Device, measure
from edgegen.sampling.generate import noise_generator

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ("steps=3", "repeats=1", "warmup=0", "prompts=a")


@pytest.fixture(autouse=True)
def _made_up_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-benchmarks take seconds and have tests of their own."""
    monkeypatch.setattr(
        command, "measure", lambda device, name: Device(name, 1e11, 1e10, measured=True)
    )


def analysed(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """`metrics.json`, and the rows of `profile.csv` by module."""
    command.main([*arguments, f"output_dir={folder}"])
    rows = csv.DictReader((folder / "profile.csv").open())
    return json.loads((folder / "metrics.json").read_text()), {row["module"]: row for row in rows}


def test_a_pipeline(
    tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, rows = analysed(
        tmp_path, f"model={tiny_pipeline_folder}", *QUICK[:3], 'prompts=["a", "bb, c=[d]"]'
    )
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    cost = count(unet, torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 24, 16))
    for name in ("", "down_blocks.1", "mid_block.attentions.0", "up_blocks.0.resnets.1"):
        row, expected = rows[f"unet.{name}".rstrip(".")], cost.under(name) if name else cost.total
        assert int(row["macs_all"]) == expected.macs_all
        assert int(row["macs_conv_linear"]) == expected.macs_conv_linear
        assert int(row["bytes"]) == expected.bytes
        assert row["calls_per_image"] == "3"
    assert metrics["profile/unet_gmacs_all"] == cost.macs_all / 1e9
    assert {row["network"] for row in rows.values()} == {
        *("unet", "text_encoder", "vae.decoder", "vae.post_quant_conv")
    }
    assert {row["level"] for row in rows.values()} == {"0", "1", "2"}
    assert metrics["machine/gbytes_per_second"] == 10
    whole = sum(
        metrics[f"profile/{name}_seconds"] * metrics[f"profile/{name}_calls"]
        for name in ("unet", "text_encoder", "vae_decoder", "vae_post_quant_conv")
    )
    assert metrics["profile/seconds_per_image"] == pytest.approx(whole)
    assert metrics["step_change/unet"] > 0
    assert metrics["step_change/unet.mid_block"] > 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["random_weights"] is False
    assert any("unet" in name for name in record["files"])
    for name in ("report.html", "roofline.png", "step_change.png", "step_change.csv"):
        assert (tmp_path / name).is_file()
    printed = capsys.readouterr().out
    assert "ten that take the most time" in printed
    assert "report.html" in printed


def test_passes_that_a_method_tells_apart(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """Full passes and reuse passes, each with its share of the steps, time and work."""
    clockwork = ("method=[clockwork]", "method.clockwork.clock=2", "steps=5", *QUICK[1:])
    metrics, rows = analysed(tmp_path, f"model={tiny_pipeline_folder}", *clockwork)
    full, reused = rows["unet"], rows["unet_2"]
    assert (full["calls_per_image"], reused["calls_per_image"]) == ("3", "2")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    cost = count(unet, torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 24, 16))
    assert int(full["macs_all"]) == cost.macs_all
    with edgegen.clockwork(unet, 2) as method:
        method.steps.reset([900.0, 800.0])
        count(unet, torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 24, 16))
        method.steps.tick()
        left = count(unet, torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 24, 16))
    assert int(reused["macs_all"]) == left.macs_all < cost.macs_all
    assert int(rows["unet.mid_block"]["macs_all"]) > 0
    assert int(rows["unet_2.mid_block"]["macs_all"]) == 0
    assert metrics["profile/unet_2_seconds"] > 0
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"


def test_changes_against_outputs_kept(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """The mean over two prompts, two branches and all steps, from outputs collected by hand."""
    metrics, _ = analysed(
        tmp_path,
        *(f"model={tiny_pipeline_folder}", *QUICK[:3], "seed=7", "depth=1", "guidance=2"),
        'prompts=["a", "b"]',
    )
    pipe = edgegen.load(tiny_pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    seen: list[torch.Tensor] = []
    pipe.unet.up_blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    changes = []
    for index, prompt in enumerate(("a", "b")):
        seen.clear()
        noise = noise_generator(7, index)
        pipe(prompt, num_inference_steps=3, guidance_scale=2.0, generator=noise)
        for before, now in ((seen[0], seen[1]), (seen[1], seen[2])):
            difference = (now - before).flatten(1).norm(dim=1)
            changes += (difference / now.flatten(1).norm(dim=1)).tolist()
    assert len(changes) == 2 * 2 * 2
    assert metrics["step_change/unet.up_blocks.0"] == pytest.approx(
        sum(changes) / len(changes), rel=1e-4
    )


def test_one_step_has_no_change(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    metrics, _ = analysed(tmp_path, f"model={tiny_pipeline_folder}", *QUICK[1:], "steps=1")
    assert metrics["step_change/unet"] is None
    reason = json.loads((tmp_path / "run.json").read_text())["null_metrics"]["step_change/unet"]
    assert reason.startswith("steps=1")
    assert not (tmp_path / "step_change.png").exists()


def test_depth(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = f"model={tiny_pipeline_folder}"
    _, whole = analysed(tmp_path / "0", model, *QUICK, "depth=0")
    assert set(whole) == {"unet", "text_encoder", "vae.decoder", "vae.post_quant_conv"}
    _, deep = analysed(tmp_path / "4", model, *QUICK, "depth=4")
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1" in deep
    assert deep["unet"]["macs_all"] == whole["unet"]["macs_all"]


def test_an_editing_pipeline(editor_folder: Path, tmp_path: Path) -> None:
    metrics, rows = analysed(tmp_path / "run", f"model={editor_folder}", *QUICK)
    assert metrics["profile/unet_calls"] == 3
    assert "vae.encoder" in rows  # of the picture to edit
    assert metrics["step_change/unet"] > 0


def test_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, rows = analysed(tmp_path, "model=taesd", "height=64", "width=64", *QUICK)
    assert {row["network"] for row in rows.values()} == {"vae.encoder", "vae.decoder"}
    assert metrics["profile/vae_decoder_gmacs_all"] > 0
    assert metrics["step_change/unet"] is None
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["random_weights"] is True
    assert "random" in record["null_metrics"]["step_change/unet"]
    assert "no weights" in capsys.readouterr().err
    assert "no weights" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["steps=0"], ["steps=0", "1 or more"]),
        (["depth=-1"], ["depth=-1", "0 or more"]),
        (["depth=blocks"], ["depth=blocks", "whole number"]),
        (["repeats=0"], ["repeats=0"]),
        (["warmup=1.5"], ["warmup=1.5"]),
        (["seed=-1"], ["seed=-1"]),
        (["guidance=x"], ["guidance=x", "number"]),
        (["height=9"], ["height=9", "multiple of 8"]),
        (["device=abacus"], ["device=abacus", "cannot be used"]),
        (["scheduler=Foo"], ["Foo"]),
        (["prompts=[]"], ["prompts", "empty"]),
        (["detph=2"], ["detph"]),
        (["model=sd15", "method=[clockwork]"], ["method=[clockwork]: needs a model with weights"]),
        (["model=/no/such/folder"], ["/no/such/folder"]),
        (["model=sd16"], ["sd16", "sd15"]),
        (["model=taesd", "height=9", "width=64"], ["height=9", "multiple of 8"]),
        (["model=taesd", "guidance=true"], ["guidance=True", "number"]),
        (["model=taesd", "device=abacus"], ["device=abacus", "cannot be used"]),
    ],
)
def test_one_line_for_a_mistake(
    arguments: list[str],
    words: list[str],
    tiny_pipeline_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as exit_:
        analysed(tmp_path / "run", f"model={tiny_pipeline_folder}", *QUICK, *arguments)
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("profile: error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_micro_benchmarks_and_all(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", measure)
    metrics, _ = analysed(tmp_path / "o", f"model={tiny_pipeline_folder}", *QUICK)
    assert metrics["machine/gflops_per_second"] > 0.1
    assert metrics["machine/gbytes_per_second"] > 0.1


def test_the_script_does_not_hide_pythons_own_profile() -> None:
    """Scripts have their folder first on the path, and `cProfile` imports `profile`."""
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import cProfile, profile; "
        "cProfile.Profile().runcall(len, 'a'); profile.Profile; print(profile.__spec__.origin)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == SCRIPTS / "profile.py"  # else nothing was tested
