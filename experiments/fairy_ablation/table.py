"""Tables and figure of the experiment, from `results.csv` alone; differences from the cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edgegen.metrics.quality.bootstrap import paired_difference
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import Better, make_table

EDIT = ["video/error_one", "video/error_any", "video/closed_one", "video/closed_any"]
STEADY = [
    "video/regret",
    "video/warp_error",
    "video/tem_con_efflite0",
    "video/frame_consistency_efflite0",
    "video/tem_con_judge",
    "video/frame_consistency_judge",
    "video/flicker",
]
TONES = [
    "video/error_tone",
    "video/closed_tone",
    "video/warp_error_dis_tone",
    "video/flicker_tone",
]
REAL = ["video/warp_error_dis_real", "video/flicker_real", "video/tem_con_efflite0_real"]
ATTENTION = ["video/attention_on_anchors", "video/attention_hit", "video/attention_chance"]
COST = ["cost/seconds_per_frame", "cost/total_tflops_all", "cost/total_tflops_conv_linear"]
TESTED = ["video/regret", "video/warp_error", "video/error_one", "video/error_any"]
BASE = "+ shared noise"
BETTER: dict[str, Better] = {
    "video/regret": "lower",
    "video/closed_one": "higher",
    "video/closed_any": "higher",
    "video/attention_hit": "higher",
}
Rows = list[dict[str, Any]]


def derived(rows: Rows, cells: Path) -> Rows:
    """The rows with `METRIC_vs_base`: the mean difference to the base's clips, by paired bootstrap.

    Clips of one subject are drawn together. The base is frame by frame with shared noise.
    """
    base = next((row for row in clips(rows) if row["row"] == BASE), None)
    made = [row for row in rows if row["stage"] == "tuned"]
    for row in clips(rows):
        found = dict(row)
        for metric in TESTED:
            if base is not None and row is not base and _there(cells, base) and _there(cells, row):
                found |= _difference(cells, row["cell"], base["cell"], metric)
        made.append(found)
    return made


def _there(cells: Path, row: dict[str, Any]) -> bool:
    return (cells / str(row["cell"]) / "scores.csv").is_file()


def clips(rows: Rows) -> Rows:
    """The rows of edited clips, without the trainings."""
    return [row for row in rows if row["stage"] != "tuned"]


def _difference(cells: Path, first: str, second: str, metric: str) -> dict[str, float]:
    (ones, asked), (others, again) = (_clips(cells / each, metric) for each in (first, second))
    if asked != again:
        raise ValueError(f"{cells / first} and {cells / second} are not of the same clips")
    known = np.isfinite(ones) & np.isfinite(others)
    if not known.any():
        return {}
    subjects = np.array([prompt.split(":")[0] for prompt in asked])[known]
    found = paired_difference(ones[known], others[known], subjects)
    name = f"{metric}_vs_base"
    return {name: found.value, f"{name}_lo": found.low, f"{name}_hi": found.high}


def _clips(folder: Path, metric: str) -> tuple[np.ndarray, list[str]]:
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([float(row.get(metric, "nan")) for row in rows]), [r["prompt"] for r in rows]


def table(rows: Rows) -> str:
    """Does it do the edit, is it steady, where does attention land, what does it cost."""
    parts, rows = [], clips(rows)
    for title, metrics in (
        ("Does it do the edit?", EDIT),
        ("Is it steady?", STEADY),
        ("Differences to frame by frame with shared noise", [f"{m}_vs_base" for m in TESTED]),
        ("Animated drawings, another skin tone (flow estimated by DIS)", TONES),
        ("A real clip, no truth (flow estimated by DIS)", REAL),
        ("Where does attention land?", ATTENTION),
        ("What does a frame cost?", COST),
    ):
        known = [name for name in metrics if any(row.get(name) is not None for row in rows)]
        if known:
            better = {name: way for name, way in BETTER.items() if name in known}
            parts += [f"# {title}", "", make_table(rows, ["row"], [], known, better).markdown()]
    floor = [row["video/warp_error_truth"] for row in rows if row.get("video/warp_error_truth")]
    if floor:
        parts += [f"The warp error of the true targets is {np.mean(floor):.4f}: interpolation.", ""]
    return "\n".join(parts)


def figures(rows: Rows) -> dict[str, Figure]:
    """Steadiness against the error of the edit."""
    points = [
        Point(
            row["video/error_one"],
            row["video/warp_error"],
            label=row["row"],
            group=row["stage"],
            x_interval=_ends(row, "video/error_one"),
            y_interval=_ends(row, "video/warp_error"),
        )
        for row in clips(rows)
    ]
    made = plot_front(points, "video/error_one", "video/warp_error") if points else None
    return {"steadiness.png": made} if made else {}


def _ends(row: dict[str, Any], name: str) -> Sequence[float] | None:
    ends = row.get(f"{name}_lo"), row.get(f"{name}_hi")
    return None if None in ends else ends
