"""The experiments of Clockwork Diffusion: published figures, and grids and tables that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgegen.runs.experiment import Experiment, table_code
from edgegen.runs.finished import from_csv

ROOT = Path(__file__).parents[1] / "experiments"
CONV, ALL = "cost/tflops_conv_linear", "cost/tflops_all"
# 2 × 8 steps × MACs of SD 1.5's blocks as counted by others, half of the steps without the part
# that Clockwork leaves out: to 0.02. Then what the paper prints, cut off: to 0.1.
TFLOPS = {
    "base": (10.84, 10.8),
    "base + identity": (7.24, 7.3),
    "base + resnet": (7.30, 7.3),
    "efficient": (9.49, 9.5),
    "efficient + identity": (5.90, 5.9),
    "efficient + resnet": (5.95, 5.9),
    "distilled": (4.74, 4.7),
    "distilled + identity": (2.95, 2.9),
    "distilled + resnet": (2.97, 2.9),
}


def committed(name: str, stage: str) -> list[dict[str, Any]]:
    rows = from_csv((ROOT / name / "results.csv").read_text(encoding="utf-8"))
    return [row for row in rows if row["stage"] == stage]


def made_up(name: str) -> list[dict[str, Any]]:
    """A row a cell of the whole grid, as the command makes them."""
    experiment = Experiment.read(ROOT / name)
    rows: list[dict[str, Any]] = []
    for stage in experiment.stages:
        for place, (point, settings) in enumerate(experiment.points(stage, rows)):
            placed = experiment.placed(settings, rows, Path("cells"))
            assert "{" not in str(placed.get("method.clockwork.predictor", "")), point
            rows.append({"stage": stage.name, **point, "cell": f"{stage.name}{place}"} | placed)
    return rows


def test_table_1_at_full_size() -> None:
    rows = committed("clockwork_table1", "full_size")
    assert [row["row"] for row in rows] == list(TFLOPS)
    for row in rows:
        counted, published = TFLOPS[row["row"]]
        assert row[CONV] == pytest.approx(counted, abs=0.02)
        assert row[CONV] == pytest.approx(published, abs=0.1)
    costs = {row["row"]: row for row in rows}
    saved = [1 - costs["base + identity"][cost] / costs["base"][cost] for cost in (CONV, ALL)]
    assert saved == pytest.approx([0.332, 0.290], abs=5e-4)
    assert costs["base"]["cost/params"] == 859_520_964


def test_editing_at_full_size() -> None:
    rows = committed("clockwork_editing", "full_size")
    text = table_code(ROOT / "clockwork_editing").full_size(rows)
    plain = next(line for line in text.splitlines() if line.startswith("| plain"))
    ours = next(line for line in text.splitlines() if line.startswith("| identity"))
    # 1000 evaluations of one branch and 50 of three, 677.2 GFLOPs each.
    assert float(plain.split("|")[2]) == pytest.approx(0.67722 * (1000 + 150), rel=1e-3)
    assert float(ours.split("|")[3].strip(" %")) == pytest.approx(33.2, abs=0.1)


def test_every_model_of_table_1_has_its_adaptors() -> None:
    rows = made_up("clockwork_table1")
    trained = {row["row"]: row for row in rows if row["stage"] == "rows"}
    assert len(trained) == 12
    adaptors = {row["cell"]: row for row in rows if row["stage"] == "adaptors"}
    for name, row in trained.items():
        model, _, how = name.partition(" + ")
        if how.startswith("learned"):
            cell = row["method.clockwork.predictor"].split("/")[1]
            assert adaptors[cell]["row"] == f"{model}, {how[-1]}"
            assert adaptors[cell]["module.teacher.guidance"] == row["guidance"]
            assert adaptors[cell].get("model.source") == row.get("model")
    label = table_code(ROOT / "clockwork_table1")._label
    timed = {row["model"]: row["methods"] for row in rows if row["stage"] == "latency"}
    assert set(timed) == {"cells/efficient0/model", "cells/distilled0/model", "base"}
    assert label({"stage": "rows", "row": "base + learned 1"}) == ("base", "learned")
    assert label({"stage": "rows", "row": "distilled"}) == ("distilled", "none")


def test_ablations_train_twelve_adaptors_and_name_what_there_is() -> None:
    rows = made_up("clockwork_ablations")
    adaptors = [row for row in rows if row["stage"] in ("plain", "adaptors")]
    assert sum(row["stage"] == "plain" for row in adaptors) == 12
    names = {row["row"] for row in rows if row["stage"] == "rows"}
    code = table_code(ROOT / "clockwork_ablations")
    shown = {name for factor in code.FACTORS.values() for name in factor}
    assert shown == names
    for better, worse, *fid in [*code.PUBLISHED, *code.EXPECTED]:
        assert {better, worse} <= names
        assert not fid or fid[0] < fid[1]
    used = {
        str(row.get("method.clockwork.predictor")).split("/")[1:2] == [a["cell"]] and a["cell"]
        for row in rows
        for a in adaptors
    } - {False}
    assert used == {row["cell"] for row in adaptors}


def test_orderings_are_told_by_their_intervals() -> None:
    code = table_code(ROOT / "clockwork_ablations")
    change = code.CHANGE
    rows = [
        {"stage": "pairs", "pair": f"{b} < {w}", change: v, f"{change}_lo": lo, f"{change}_hi": hi}
        for (b, w, *_), (v, lo, hi) in zip(
            code.PUBLISHED, [(-2, -3, -1), (2, 1, 3), (-1, -3, 1)], strict=False
        )
    ]
    lines = code.orderings(rows).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:5]] == [
        "yes",
        "no, reversed",
        "not told apart",
    ]


def test_peers_are_timed_under_the_names_of_their_rows() -> None:
    rows = made_up("reuse_peers")
    code = table_code(ROOT / "reuse_peers")
    timed = {
        (str(row["steps"]), each if isinstance(each, str) else next(iter(each)))
        for row in rows
        if row["stage"] == "latency"
        for each in row["methods"]
    }
    labels = {row["row"]: code._label(row) for row in rows if row["stage"] == "methods"}
    untimed = {name for name, label in labels.items() if label not in timed}
    assert untimed == {
        *(f"8 ours solution {span}{seed}" for span in ("", "span ") for seed in (0, 1)),
        *(f"4 ours solution span {seed}" for seed in (0, 1)),
        "4 ours span linear",
        "4 ours drift",
        "8 ours learned 1",
        "8 ours learned gated",
        "8 ours learned schedule",
        "8 ours linear schedule",
        "8 ours learned span 1",
        "8 ours schedule of 3",
        "8 fewer 7",
        *(f"8 deepcache 2 deep {branch}" for branch in (3, 4, 5)),
    }
    # Fronts differ in what is reused, not in where it is cut, and have odd and even step counts.
    front = [row for row in rows if row["stage"] == "front"]
    assert {int(row["steps"]) % 2 for row in front} == {0, 1}
    named = {row["row"]: row for row in rows if row["stage"] == "methods"}
    clock = "method.clockwork.clock"
    for learned, identity in code.LEARNED.items():
        assert named[learned].get(clock, 2) == named[identity].get(clock, 2)
        assert "method.clockwork.predictor" not in named[identity]
    # Each is what its name says: 8 or 4 steps, or as many as the "fewer" ones name.
    for row in (row for row in rows if row["stage"] == "methods"):
        name = row["row"]
        assert str(row["steps"]) == (name.split()[-1] if "fewer" in name else name.split()[0])
    groups = {code.group(row["method_name"]) for row in rows if row["stage"] == "front"}
    assert groups == {"plain", "peers", "ours"}


def test_bars_are_read_from_the_rows() -> None:
    code = table_code(ROOT / "reuse_peers")

    def pair(more: str, low: float, high: float) -> dict[str, Any]:
        ends = {"": (low + high) / 2, "_lo": low, "_hi": high}
        made = {f"{code.ERROR}_change{end}": value for end, value in ends.items()}
        return {"stage": "pairs", "pair": f"8 ours learned 0 < {more}", **made}

    def ends(name: str, value: float, low: float, high: float) -> dict[str, float]:
        return {name: value, f"{name}_lo": low, f"{name}_hi": high}

    costs = {
        "8 ours learned 0": 1.0,
        "8 ours identity": 0.9,
        "8 fewer 6": 1.0,
        "8 deepcache 3 b2": 0.8,  # cheaper: held against nobody
    }
    rows = [
        *({"stage": "methods", "row": name, CONV: cost} for name, cost in costs.items()),
        pair("8 ours identity", -2, -1),
        pair("8 fewer 6", -1, 1),
        pair("8 deepcache 3 b2", 1, 2),
        {"stage": "slacks", "pair": "8 ours learned 0", **ends(code.SLACK, 0.2, 0.1, 0.3)},
        {"stage": "slacks", "pair": "8 ours learned 1", **ends(code.SLACK, 0.2, -0.1, 0.3)},
        {"stage": "fronts", "front": "ours − peers", **ends("quality/hypervolume", 0.2, 0.1, 0.3)},
        {"stage": "times", "pair": "a / b", **ends("cost/time_ratio", 1.1, 1.1, 1.1)},
    ]
    lines = [line.split("|")[1:-1] for line in code.bars(rows).splitlines()[2:]]
    assert [(name.strip().split(",")[0], reached.strip()) for name, _, reached in lines] == [
        ("paired error", "yes"),
        ("paired error", "not told apart"),
        ("FD", "yes"),
        ("FD", "not told apart"),
        ("hypervolume", "yes"),
        ("time", "no"),
    ]
