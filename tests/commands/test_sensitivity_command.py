from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgegen.commands.generate import main as generate
from edgegen.commands.sensitivity import main
from edgegen.runs.sensitivity_report import decibels

PART = "include: [unet.mid_block.*]\nactivations: {range: mse}\n"


@pytest.fixture(scope="module")
def run(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the way from the cheapest to the dearest bits."""
    folder = tmp_path_factory.mktemp("sensitivity")
    (folder / "part.yaml").write_text(PART)
    main(
        [
            f"model.source={tiny_pipeline_folder}",
            f"spec={folder / 'part.yaml'}",
            "weights=[2,8]",
            "activations=[4,8]",
            "prompts=a fox",
            "steps=2",
            "size_kb=14",
            f"output_dir={folder / 'run'}",
        ]
    )
    return folder / "run"


def test_writes_figures_spec_and_report(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    found = json.loads((run / "sensitivity.json").read_text())
    assert metrics["run/timesteps"] == len(found["timesteps"]) == 2
    assert metrics["run/layers"] == len(found["layers"]) > 10
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert metrics["cost/size_kb_mixed"] <= 14 < metrics["cost/size_kb_w8a8"]
    low, high = metrics["quality/sqnr_db_w2a8"], metrics["quality/sqnr_db_w8a8"]
    assert low < metrics["quality/sqnr_db_mixed"] < high
    page = (run / "report.html").read_text()
    assert page.count("<img") == 3
    assert all(layer["path"] in page for layer in found["layers"])
    assert "http" not in page.replace("http-equiv", "")
    told = yaml.safe_load((run / "spec.yaml").read_text())["layers"]
    assert {layer["weights"]["bits"] for layer in told.values()} == {2, 8}


def test_spec_serves_as_a_method(run: Path, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    generate(
        [
            f"model.source={tiny_pipeline_folder}",
            "method=[mixed]",
            f"method.mixed.spec={run / 'spec.yaml'}",
            "prompts=a fox",
            "steps=2",
            f"output_dir={tmp_path}",
        ]
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["cost/tbops"] > 0


def test_bits_from_an_earlier_measurement(
    run: Path, tiny_pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        f"model.source={tiny_pipeline_folder}",
        f"spec={run.parent / 'part.yaml'}",
        f"measured={run / 'sensitivity.json'}",
        "prompts=a fox",
        "steps=2",
        f"output_dir={tmp_path / 'run'}",
    ]
    refused(capsys, [*common, "gbops=1e-6"], "gbops=1e-06: allowed are ")
    assert not (tmp_path / "run").exists()
    main([*common, "size_kb=14"])
    first, again = (
        yaml.safe_load((each / "spec.yaml").read_text()) for each in (run, tmp_path / "run")
    )
    assert first == again


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert text in lines[-1]


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("weights=[1]", "weights=[1]: must be a list of 2, 3,"),
        ("activations=8", "activations=8: must be a list of"),
        ("size_kb=none", "size_kb=none: must be a number over 0, or null"),
        ("steps=0", "steps=0"),
        ("spec=w9", "allowed are"),
        ("measured=nothing.json", "measured=nothing.json: no such file"),
    ],
)
def test_refusals(
    argument: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [argument, f"output_dir={tmp_path / 'run'}"], text)
    assert not (tmp_path / "run").exists()


def test_decibels() -> None:
    assert decibels(0.001) == pytest.approx(30)
    assert decibels(0.0) == float("inf")


def test_unreadable_measurement(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "other.json").write_text("[1]")
    refused(capsys, [f"measured={tmp_path / 'other.json'}"], "must be a sensitivity.json")
