"""Editors timed in turn: a row a model, whose parts add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgegen
from edgegen.commands.edit_times import PARTS, main
from edgegen.runs.finished import from_csv
from edgegen.runs.memory import network_call


def models(folder: Path, *steps: int) -> str:
    each = (f"{{name: {count} steps, source: '{folder}', steps: {count}}}" for count in steps)
    return f"models=[{', '.join(each)}]"


def test_a_row_a_model(editor_folder: Path, tmp_path: Path, capsys: Any) -> None:
    small = ["size=32", "frames=4", "anchors=2", "rounds=2", "warmup=0", "memory=false"]
    main([models(editor_folder, 1, 3), *small, f"output_dir={tmp_path / 'out'}"])
    one, three = from_csv((tmp_path / "out" / "results.csv").read_text())
    assert [one["name"], three["name"]] == ["1 steps", "3 steps"]
    for row in (one, three):
        times = {part: row[f"cost/{part}_seconds_per_frame"] for part in PARTS.values()}
        assert min(times.values()) > 0
        low, high = (row[f"cost/networks_seconds_per_frame_{q}"] for q in ("q25", "q75"))
        assert 0.5 * low <= sum(times.values()) <= 2 * high
    # Anchors and frames see the UNet once a step, and encoder and decoder once.
    assert three["cost/unet_tflops_all"] == pytest.approx(3 * one["cost/unet_tflops_all"])
    assert three["cost/vae_decoder_tflops_all"] == one["cost/vae_decoder_tflops_all"]
    assert one["cost/networks_times_faster"] == 1
    assert not list((tmp_path / "out").glob("frames*"))
    assert "3 steps" in capsys.readouterr().out


@pytest.mark.parametrize("part", PARTS.values())
def test_a_call_of_each_part(part: str, editor_folder: Path) -> None:
    """The call of which memory is measured is one that the pipeline makes."""
    made: Any = network_call({"source": str(editor_folder)}, part, 3, 32)()
    factor = edgegen.load(editor_folder).vae_scale_factor
    if part == "vae_encoder":
        assert made.latent_dist.mode().shape == (3, 4, 32 // factor, 32 // factor)
    else:
        channels, side = (3, 32) if part == "vae_decoder" else (4, 32 // factor)
        assert made.sample.shape == (3, channels, side, side)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("models=[]", "must be a list such as"),
        ("models=[{name: a, source: emoji-edit}]", "lacks steps"),
        ("models=[{name: a, source: emoji-edit, steps: 1, bits: 8}]", "unknown key bits"),
        ("models=[{name: a, source: emoji-edit, steps: 0}]", "steps=0: must be a whole number"),
        ("frames=1", "frames=1: must be a whole number, 2 or more"),
    ],
)
def test_mistakes_take_one_line(
    typed: str, words: str, editor_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([models(editor_folder, 1), typed, f"output_dir={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()
