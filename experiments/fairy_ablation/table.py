"""Tables and figure of the experiment, from `results.csv` alone; differences from the cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edgegen.runs.cell_samples import difference_rows, renewed
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import Better, make_table

EDIT = [
    "video/error_one",
    "video/error_one_ends",
    "video/error_any",
    "video/closed_one",
    "video/closed_any",
]
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
    "video/error_tone_known",
    "video/closed_tone_known",
    "video/warp_error_dis_tone",
    "video/flicker_tone",
    "video/warp_error_dis_tone_known",
    "video/flicker_tone_known",
]
REAL = ["video/warp_error_dis_real", "video/flicker_real", "video/tem_con_efflite0_real"]
ATTENTION = [
    "video/attention_on_anchors",
    "video/attention_hit",
    "video/attention_chance",
    "video/attention_times_chance",
]
COST = ["cost/seconds_per_frame", "cost/total_tflops_all", "cost/total_tflops_conv_linear"]
TESTED = [
    "video/regret",
    "video/warp_error",
    "video/error_one",
    "video/error_one_ends",
    "video/error_any",
]
BETTER: dict[str, Better] = {
    "video/regret": "lower",
    "video/closed_one": "higher",
    "video/closed_any": "higher",
    "video/closed_tone": "higher",
    "video/closed_tone_known": "higher",
    "video/attention_hit": "higher",
}
# What each change does: the first row less the second, clip by clip.
PAIRS = {
    "shared noise": ("+ shared noise", "frame by frame"),
    **{
        f"{count} anchor{'s' if count > 1 else ''}": (
            f"+ {count} anchor{'s' if count > 1 else ''}",
            "+ shared noise",
        )
        for count in (1, 2, 3, 5, 7)
    },
    "3 anchors instead of 1": ("+ 3 anchors", "+ 1 anchor"),
    "7 anchors instead of 3": ("+ 7 anchors", "+ 3 anchors"),
    "no own keys, 3 anchors": ("3 anchors, no own keys", "+ 3 anchors"),
    "no own keys, first frame": ("first frame, no own keys", "first frame"),
    "no own keys, middle frame": ("middle frame, no own keys", "+ 1 anchor"),
    "first frame instead of 1 anchor": ("first frame", "+ 1 anchor"),
    "middle instead of first frame, no own keys": (
        "middle frame, no own keys",
        "first frame, no own keys",
    ),
    "at the start instead of spread": ("3 anchors at the start", "+ 3 anchors"),
    **{
        f"fine-tuning {seed}, {anchors}": (
            f"+ fine-tuning {seed}, {anchors}",
            "+ shared noise" if anchors == "no anchors" else "+ 3 anchors",
        )
        for seed in (0, 1)
        for anchors in ("no anchors", "3 anchors")
    },
    **{
        f"moved pairs {seed} instead of still ones, {anchors}": (
            f"+ fine-tuning {seed}, {anchors}",
            f"trained on as long {seed}, {anchors}",
        )
        for seed in (0, 1)
        for anchors in ("no anchors", "3 anchors")
    },
}
Rows = list[dict[str, Any]]


def derived(rows: Rows, cells: Path) -> Rows:
    """Rows `pairs` besides: `PAIRS` by paired bootstrap, clips of one subject drawn together."""
    named = {row["row"]: row for row in clips(rows)}
    pairs = {
        name: (named[first], named[second])
        for name, (first, second) in PAIRS.items()
        if first in named and second in named
    }
    found = difference_rows(cells, "pairs", pairs, TESTED, lambda prompt: prompt.split(":")[0])
    return renewed(rows, "pairs", found, pairs)


def clips(rows: Rows) -> Rows:
    """The rows of edited clips, without the trainings and the differences."""
    return [row for row in rows if row["stage"] not in ("tuned", "pairs")]


def table(rows: Rows) -> str:
    """Does it do the edit, is it steady, where does attention land, what does it cost."""
    parts, pairs, rows = [], [row for row in rows if row["stage"] == "pairs"], clips(rows)
    for title, metrics in (
        ("Does it do the edit?", EDIT),
        ("Is it steady?", STEADY),
        ("Animated drawings, another skin tone (flow estimated by DIS)", TONES),
        ("One real clip, so no interval, and no truth (flow estimated by DIS)", REAL),
        ("Where does attention land?", ATTENTION),
        ("What does a frame cost?", COST),
    ):
        known = [name for name in metrics if any(row.get(name) is not None for row in rows)]
        if known:
            better = {name: way for name, way in BETTER.items() if name in known}
            parts += [f"# {title}", "", make_table(rows, ["row"], [], known, better).markdown()]
    if pairs:
        changes = [f"{m}_change" for m in TESTED if any(f"{m}_change" in row for row in pairs)]
        made = make_table(pairs, ["pair"], [], changes, {})
        parts += ["# What each change does", "", made.markdown()]
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
