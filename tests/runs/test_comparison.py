"""Figures, scores and the page of a comparison."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from test_report import Page

from edgegen.metrics.quality.paired import PairedError
from edgegen.runs import comparison
from edgegen.runs.comparison import Figures, Task, check_label, judge, labelled, measure_memory
from edgegen.runs.comparison_report import columns, csv_table, markdown, notes, write_comparison
from edgegen.runs.record import Run, read_record


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run") as run:
        yield run


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cost/time_ratio", "cost/time_ratio_x"),
        ("cost/time_ratio_lo", "cost/time_ratio_x_lo"),
        ("quality/ode_rmse_n", "quality/ode_rmse_x_n"),
        ("quality/ode_rmse_vs_none_sd", "quality/ode_rmse_vs_none_x_sd"),
        ("cost/seconds_per_image_p95", "cost/seconds_per_image_p95_x"),
    ],
)
def test_labels_stand_before_the_ends(name, wanted):
    assert labelled(name, "x") == wanted


@pytest.mark.parametrize("label", ["a", "clockwork-2", "w4a8", "two_words", "nlo"])
def test_labels_that_are_allowed(label):
    check_label(label)


@pytest.mark.parametrize(
    "label", ["", "A", "a b", "../a", "a/b", "-a", "a.", "x_lo", "n", "ä", "a|b"]
)
def test_labels_that_are_refused(label):
    with pytest.raises(ValueError, match="no name for a row"):
        check_label(label)


def test_figures_are_kept_in_the_run(run):
    figures = Figures(run, ["none", "fast"])
    figures.add("fast", {"cost/time_ratio": np.float64(0.5), "cost/time_ratio_lo": float("nan")})
    figures.unknown("none", "cost/peak_memory_mb", "no such luck")
    kept = json.loads((run.dir / "metrics.json").read_text())
    assert kept == {
        "cost/time_ratio_fast": 0.5,
        "cost/time_ratio_fast_lo": None,
        "cost/peak_memory_mb_none": None,
    }
    assert read_record(run.dir)["null_metrics"]["cost/peak_memory_mb_none"] == "no such luck"
    assert figures.rows["fast"] == {"cost/time_ratio": 0.5, "cost/time_ratio_lo": None}


def test_batches_go_round_the_prompts():
    task = Task(None, ["a", "b", "c"], [(0, 0), (0, 1), (0, 2)], {}, 2)
    assert [task.batch(number)[0] for number in range(4)] == [
        ["a", "b"],
        ["c", "a"],
        ["b", "c"],
        ["a", "b"],
    ]
    assert task.batch(1)[1] == [(0, 2), (0, 0)]


class Mean(torch.nn.Module):
    """A backbone whose features are the three channels' means."""

    name = "mean"

    def forward(self, pictures):
        return pictures.mean((2, 3))


def test_scores_are_those_of_numpy(run):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (40, 6, 5, 3), np.uint8)
    pictures = {name: rng.integers(0, 256, truth.shape, np.uint8) for name in ("fast", "none")}
    figures = Figures(run, ["none", "fast"])
    judge(figures, pictures, PairedError(Mean()), truth, versus=True)

    def errors(label):
        gap = (pictures[label] / 255.0 - truth / 255.0) ** 2
        features = (pictures[label].mean((1, 2)) - truth.mean((1, 2))) / 255
        return gap.mean((1, 2, 3)) ** 0.5, (features**2).mean(1) ** 0.5

    for label in pictures:
        for name, values in zip(("ode_rmse", "ode_mean"), errors(label), strict=True):
            row = figures.rows[label]
            assert row[f"quality/{name}"] == pytest.approx(values.mean(), rel=1e-6)
            assert row[f"quality/{name}_n"] == 40
    fast = figures.rows["fast"]
    gap = errors("fast")[0] - errors("none")[0]
    assert fast["quality/ode_rmse_vs_none"] == pytest.approx(gap.mean(), rel=1e-5)
    interval = stats.bootstrap((gap,), np.mean, method="percentile", random_state=0)
    low, high = interval.confidence_interval
    assert fast["quality/ode_rmse_vs_none_lo"] == pytest.approx(low, abs=0.1 * (high - low))
    assert fast["quality/ode_rmse_vs_none_hi"] == pytest.approx(high, abs=0.1 * (high - low))
    assert not any("_vs_none" in name for name in figures.rows["none"])


def test_one_picture_has_no_interval(run):
    truth = np.zeros((1, 4, 4, 3), np.uint8)
    figures = Figures(run, ["none"])
    judge(figures, {"none": truth + 51}, PairedError(Mean()), truth, versus=True)
    assert figures.rows["none"] == pytest.approx(
        {
            "quality/ode_rmse": 0.2,
            "quality/ode_rmse_n": 1,
            "quality/ode_mean": 0.2,
            "quality/ode_mean_n": 1,
        }
    )


def test_a_failed_measurement_of_memory_is_told(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the process was ended by signal 9")

    class Pipe:
        device = torch.device("cpu")

    monkeypatch.setattr(comparison, "peak_memory", fail)
    figures = Figures(run, ["none"])
    task = Task(Pipe(), ["a"], [(0, 0)], {}, 1)
    measure_memory(figures, {"none": {}}, task, {})
    assert figures.rows["none"] == {"cost/peak_memory_mb": None}
    reason = read_record(run.dir)["null_metrics"]["cost/peak_memory_mb_none"]
    assert "signal 9" in reason


ROWS = {
    "none": {
        "cost/seconds_per_image": 2.0,
        "cost/seconds_per_image_q25": 1.9,
        "cost/seconds_per_image_q75": 2.25,
        "cost/tflops_all": 0.8,
        "cost/peak_memory_mb": None,
        "quality/ode_rmse": 0.05,
        "quality/ode_rmse_n": 7.0,
        "quality/clip_judge": 27.31,
    },
    "fast": {
        "cost/seconds_per_image": 0.5,
        "cost/time_ratio": 0.25,
        "cost/time_ratio_lo": 0.2,
        "cost/time_ratio_hi": 0.3,
        "cost/tflops_all": 0.0004,
        "cost/peak_memory_mb": 1500.0,
        "cost/peak_memory_rise_mb": 20.0,
        "quality/ode_rmse": 0.06,
        "quality/ode_rmse_vs_none": -0.01,
        "quality/ode_rmse_vs_none_lo": -0.02,
        "quality/ode_rmse_vs_none_hi": 0.0,
    },
}


def test_the_table_in_markdown():
    heads, rule, none, fast, *rest = markdown(ROWS, ["what it means"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heads, none, fast)]
    assert list(zip(*cells, strict=True)) == [
        ("Method", "none", "fast"),
        ("Pixel error", "0.0500", "0.0600"),
        ("Text score (judge)", "27.3", ""),
        ("Pixel error, minus none", "", "−0.0100 [−0.0200, +0.0000]"),
        ("Time", "2.00 s [1.90, 2.25]\u00a0s", "500 ms"),
        ("Time ÷ none", "", "0.250 [0.200, 0.300]"),
        ("UNet, all", "800 GFLOP", "400 MFLOP"),
        ("Peak memory", "unknown", "1.50 GB +20.0 MB"),
    ]
    assert set(rule) == set("|-: ")
    assert rest == ["", "- what it means"]


def test_the_csv_has_every_figure():
    rows = list(csv.DictReader(io.StringIO(csv_table(ROWS))))
    assert [row.pop("method") for row in rows] == ["none", "fast"]
    for row, wanted in zip(rows, ROWS.values(), strict=True):
        assert {name: float(value) for name, value in row.items() if value} == {
            name: value for name, value in wanted.items() if value is not None
        }


def test_bit_operations_are_shown_where_widths_differ():
    rows = {
        "none": {"cost/tflops_all": 2.0, "cost/tbops": 1024.0},
        "skipping": {"cost/tflops_all": 1.0, "cost/tbops": 512.0},
    }
    options = {"rounds": 1, "warmup": 0, "batch": 1, "threads": 1, "truth_steps": 1}
    assert not any("bit" in column.head for column in columns(rows))
    assert not any("BOPs" in note for note in notes(rows, **options))
    rows["w8a8"] = {"cost/tflops_all": 2.0, "cost/tbops": 64.0}
    (column,) = (column for column in columns(rows) if "bit" in column.head)
    assert [column.cell(row).value for row in rows.values()] == [
        "1.02 PBOP",
        "512 TBOP",
        "64.0 TBOP",
    ]
    assert any("BOPs" in note for note in notes(rows, **options))


def test_notes_explain_what_is_there_alone():
    options = {"rounds": 9, "warmup": 1, "batch": 2, "threads": 3, "truth_steps": 77}
    text = " ".join(notes(ROWS, **options))
    for words in ("9 rounds", "threads: 3", "77-step", "Peak memory", "over 7 pictures"):
        assert words in text
    assert "Energy" not in text
    bare = " ".join(notes({"none": {"cost/tflops_all": 1.0}}, **options))
    assert not re.search("Peak|Energy|truth|bootstrap", bare)


def test_the_page_holds_it_all(tmp_path):
    prompts = ["<b>bold</b>", "a & b"]
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    files = {
        label: [tmp_path / f"{2 * row + column}.png" for column in range(2)]
        for row, label in enumerate(("truth", "none", "fast"))
    }
    path = write_comparison(
        tmp_path / "r.html",
        title="T",
        lead="L",
        rows=ROWS,
        notes=["first note"],
        methods={"none": "the plain model", "fast": "fast · clock 2"},
        seconds={"none": [2.0, 4.0], "fast": [1.0, 0.5]},
        prompts=prompts,
        pictures=files,
        left_out=3,
        record={"command": "compare", "settings": {"model": "<script>"}},
    )
    text = path.read_text()
    page = Page(text)
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert images == [f"{label}: {prompt}" for label in files for prompt in prompts]
    words = " ".join(page.text.split())
    for column in columns(ROWS):
        assert column.head in words
    for shown in (
        "0.250 [0.200, 0.300]",
        "first note",
        "fast · clock 2",
        "3 more prompts",
        "4.00 s",
    ):
        assert shown in words
    assert re.findall(r"left: ([\d.]+)%", text) == ["50.00", "100.00", "25.00", "12.50"]
    assert "<b>bold" not in text
    assert "<script>" not in text
    assert not re.search(r"https?:|url\(|@import", text)
