from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgegen.commands import _generation, robustness
from edgegen.commands._operating_points import OperatingPoint
from edgegen.metrics.quality.bootstrap import Estimate
from edgegen.metrics.quality.efflite0 import EffLite0
from edgegen.runs.record import is_finished, read_record

Run = Callable[..., tuple[Path, dict[str, Any]]]


class Quick(torch.nn.Module):
    """In place of the judge, which is slow on one core: pixels in a grid of 4 × 4."""

    weights_file = staticmethod(EffLite0.weights_file)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "EffLite0", Quick)


@pytest.fixture
def run(tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on the tiny model; returns the folder and the metrics."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a\nb\nc\n")

    def made(*overrides: str, folder: str = "o") -> tuple[Path, dict[str, Any]]:
        fixed = [
            f"model={tiny_pipeline_folder}",
            f"output_dir={folder}",
            "prompts_file=prompts.txt",
            "guidance=3",
            "steps=3",
            "disturbed=2",
            "points={steps: [4], clocks: [2]}",
            "truth_steps=6",
            "batch_size=2",
            "resamples=50",
            "cache=cache",
        ]
        robustness.main([*fixed, *overrides])
        return Path(folder), json.loads((Path(folder) / "metrics.json").read_text())

    return made


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float) / 255


def test_what_it_finds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, metrics = run("points={steps: [4, 6], clocks: [2, 3]}", "steps=2")
    levels = table(folder / "levels.csv")
    assert [(row["level"], row["step"]) for row in levels] == [
        (level, step) for level in "01" for step in "12"
    ]
    for row in levels:
        name = f"level_{row['level']}_step_{row['step']}"
        for error in ("rmse", "efflite0"):
            assert float(row[error]) == metrics[f"robustness/{error}_{name}"] > 0
            assert float(row[f"{error}_lo"]) <= float(row[error]) <= float(row[f"{error}_hi"])
        if row["step"] == "1":
            assert row["move"] == ""
            assert f"robustness/move_{name}" not in metrics
        else:
            assert float(row["move"]) == metrics[f"robustness/move_{name}"] > 0
    points = table(folder / "points.csv")
    places = [(steps, clock) for steps in "46" for clock in "23"]
    assert [(row["steps"], row["clock"]) for row in points[::2]] == places
    # By hand, from the pictures themselves.
    for row in points[::2]:
        drawn = [
            np.stack(
                [
                    picture(folder / f"images/steps-{row['steps']}-clock-{c}/{i:06d}.png")
                    for i in range(3)
                ]
            )
            for c in (1, row["clock"])
        ]
        assert not np.array_equal(*drawn)
        name = f"steps_{row['steps']}_clock_{row['clock']}"
        assert float(row["cost"]) == pytest.approx(float(row["reused"]) - float(row["base"]))
        assert metrics[f"robustness/cost_rmse_{name}"] == float(row["cost"])
        assert metrics[f"quality/ode_rmse_{name}"] == float(row["reused"])
        assert metrics[f"quality/ode_rmse_{name}_n"] == 3
        width = float(row["cost_hi"]) - float(row["cost_lo"])
        assert float(row["ratio"]) == pytest.approx(float(row["cost"]) / width)
        assert (float(row["ratio"]) > 2) == (row["measurable"] == "1")
    for error in ("rmse", "efflite0"):
        count = sum(row["measurable"] == "1" for row in points if row["error"] == error)
        assert metrics[f"robustness/points_measurable_{error}"] == count
    assert metrics["robustness/points"] == 4
    with Image.open(folder / "robustness.png") as image:
        assert image.width > 1000
    assert is_finished(folder)
    assert any("efficientnet" in name for name in read_record(folder)["files"])
    assert "cost of identity reuse" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_noise_is_measured_against_the_undisturbed_pictures(run: Run) -> None:
    """More noise costs more, none nearly nothing; and a run repeats to the bit."""
    cells = {}
    for sigma in ("1e-6", "0.3", "1.0"):
        _, cells[sigma] = run(f"sigma={sigma}", folder=sigma)
    name = "robustness/rmse_level_1_step_1"
    assert cells["1e-6"][name] < 1 / 255
    assert cells["1e-6"][name] < cells["0.3"][name] < cells["1.0"][name]
    _, again = run("sigma=0.3", folder="again")
    same = {key: value for key, value in again.items() if not key.startswith("run/")}
    assert same == {key: cells["0.3"][key] for key in same}


@pytest.mark.usefixtures("quick")
def test_a_clock_longer_than_the_run_is_one_full_pass(run: Run) -> None:
    folder, _ = run("points={steps: [3], clocks: [3, 9]}")
    found = [
        [picture(folder / f"images/steps-3-clock-{clock}/{i:06d}.png") for i in range(3)]
        for clock in (3, 9)
    ]
    assert np.array_equal(*found)


@pytest.mark.usefixtures("quick")
def test_run_again_it_draws_only_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = run()
    (folder / "images/steps-4-clock-2/000002.png").unlink()
    drawn: list[int] = []
    real = _generation.sample

    def spy(pipe: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        drawn.append(len(prompts))
        return real(pipe, prompts, *arguments, **options)

    monkeypatch.setattr(_generation, "sample", spy)
    _, after = run()
    assert after == before
    assert sum(drawn) == 1  # the last batch of three by two


@pytest.mark.usefixtures("quick")
def test_captions_of_the_dev_half(run: Run, emoji_file: Path) -> None:
    folder, metrics = run(
        "prompts_file=null", f"domain.file={emoji_file}", "domain.groups=[food-drink]", "n=2"
    )
    assert metrics["quality/ode_rmse_steps_4_clock_2_n"] == 2
    with Image.open(folder / "images/steps-4-clock-2/000000.png") as image:
        assert image.info["prompt"].startswith("thing ")


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 0.0, 9)


@pytest.mark.parametrize(
    ("cost", "ratio"),
    [((0.5, 0.4, 0.6), 2.5), ((0.3, 0.2, 0.4), 1.5), ((-0.5, -0.6, -0.4), -2.5), ((0, 0, 0), 0)],
)
def test_measurable_is_more_than_twice_the_interval(
    cost: tuple[float, float, float], ratio: float
) -> None:
    point = OperatingPoint(8, 2, {}, {}, {"rmse": estimate(*cost)})
    assert point.ratio("rmse") == pytest.approx(ratio)
    assert point.measurable("rmse") == (ratio > 2)
    assert math.isfinite(point.ratio("rmse"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sigma=0"], "sigma=0: must be a number above 0"),
        (["steps=0"], "steps=0: must be a whole number"),
        (["points.clocks=[1]"], "points.clocks=[1]: must be different whole numbers, 2 or more"),
        (["points.steps=[]"], "points.steps=[]"),
        (["scheduler=DDIM", "points.steps=[5000]"], "points.steps: 5000"),
        (["stage=2"], "stage=2: allowed on this UNet are 1 to 1"),
        (["prompts_file=none.txt"], "prompts_file=none.txt: no such file"),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str], words: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert words in error
    assert not Path("o").exists()
