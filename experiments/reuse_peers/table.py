"""Table and figures of the experiment, from `results.csv` alone; what takes samples, from cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.cell_samples import (
    add_differences,
    add_latency,
    difference_rows,
    front_rows,
    renewed,
    time_ratio_rows,
)
from edgegen.runs.distance_samples import SLACK, slack_rows
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import Score, make_table, score_text

COST, ALL, ERROR = "cost/tflops_conv_linear", "cost/tflops_all", "quality/ode_rmse"
AGAINST = f"{ERROR}_vs_learned"
DISTANCE, RATIO = "quality/fd_pca64_efflite0", "cost/time_ratio"
COLUMNS = [
    COST,
    ALL,
    ERROR,
    AGAINST,
    "quality/ode_efflite0",
    "quality/clip_judge",
    "cost/seconds_per_image_interleaved",
    "cost/time_ratio",
]
DISTANCES = [DISTANCE, "quality/clip_judge", "quality/concept_accuracy", "quality/copy_rate"]
RIVALS = ("8 deepcache", "8 tgate", "8 fewer")
SCHEDULE = "8 ours schedule"  # the best one, with the identity
# Each seed of the learned adaptor, with the identity at the same clock.
LEARNED = {
    "8 ours learned 0": "8 ours identity",
    "8 ours learned 1": "8 ours identity",
    "8 ours learned span 0": "8 ours span",
    "8 ours learned span 1": "8 ours span",
    "8 ours solution 0": "8 ours identity",
    "8 ours solution 1": "8 ours identity",
    "8 ours solution span 0": "8 ours span",
    "8 ours solution span 1": "8 ours span",
}
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """The bars; methods at 8 and at 4 steps, the front, and what was tuned."""
    parts = ["# Bars", "", bars(rows)]
    for steps in (8, 4):
        own = [row for row in of(rows, "methods") if str(row["row"]).startswith(f"{steps} ")]
        parts += [f"# {steps} steps of DPM-Solver++", "", shown(own, ["row"], COLUMNS)]
    parts += [
        f"`{AGAINST}`: the mean difference to the first learned adaptor at as many steps, over the "
        "same prompts and noise; where its interval lies above zero, the adaptor's error is lower.",
        "",
        "# Six pictures a caption: distance to real pictures, text score, concept accuracy",
        "",
        shown(of(rows, "distances"), ["row"], DISTANCES),
        "# The front, 4 to 25 steps",
        "",
        shown(of(rows, "fronts"), ["front"], ["quality/hypervolume"]),
        shown(of(rows, "front"), ["method_name", "steps"], [COST, ERROR]),
        "# Tuning, 8 steps, dev",
        "",
        shown(of(rows, "tuning"), ["row"], [COST, ERROR]),
    ]
    return "\n".join(parts)


def bars(rows: Rows) -> str:
    """What was set out to be reached, and whether it is."""
    named = {row["row"]: row for row in of(rows, "methods")}
    front = next((r for r in of(rows, "fronts") if r["front"] == "ours − peers"), None)
    times = of(rows, "times")
    lines = ["| bar | value | reached |", "| --- | ---: | --- |"]
    costs = {name: row[COST] for name, row in named.items()}
    for row in of(rows, "pairs"):
        less, _, more = str(row["pair"]).partition(" < ")
        # What costs as much or more, and for a learned one the identity.
        if more == LEARNED.get(less) or costs[more] >= 0.98 * costs[less]:
            keys = [f"{ERROR}_change{end}" for end in ("", "_lo", "_hi")]
            score = Score(*(row[key] for key in keys))
            lines.append(
                f"| paired error, {less[2:]} − {more[2:]} < 0 | {score_text(score)} "
                f"| {score.below_zero('no, reversed')} |"
            )
    for row in of(rows, "slacks"):
        score = Score(row[SLACK], row[f"{SLACK}_lo"], row[f"{SLACK}_hi"])
        reached = "yes" if score.low > 0 else "no" if score.high < 0 else "not told apart"
        lines.append(
            f"| FD, {str(row['pair'])[2:]}: a tenth of (4 steps − 8 steps) less "
            f"its distance from 8 steps > 0 | {score_text(score)} | {reached} |"
        )
    if front is not None:
        keys = [f"quality/hypervolume{end}" for end in ("", "_lo", "_hi")]
        score = Score(*(front[key] for key in keys))
        reached = "yes" if score.low > 0 else "no"
        lines.append(f"| hypervolume, ours − peers > 0 | {score_text(score)} | {reached} |")
    for row in times:
        low, high = (row.get(f"{RATIO}{end}") or row[RATIO] for end in ("_lo", "_hi"))
        reached = "yes" if low <= 1 else "no"
        text = score_text(Score(row[RATIO], low, high))
        lines.append(f"| time, {row['pair']} ≤ 1 within noise | {text} | {reached} |")
    return "\n".join([*lines, ""]) if len(lines) > 2 else "Not run yet.\n"


def shown(rows: Rows, axes: list[str], columns: list[str]) -> str:
    metrics = [name for name in columns if any(row.get(name) is not None for row in rows)]
    ways = {"cost/time_ratio": "lower"} if "cost/time_ratio" in metrics else {}
    return make_table(rows, axes, [], metrics, ways).markdown() if metrics else "Not run yet.\n"


def figures(rows: Rows) -> dict[str, Figure]:
    """Error against work, of ours and of all others."""
    points = [
        Point(
            row[COST],
            row[ERROR],
            label=f"{row['method_name']} {row['steps']}",
            group=group(row["method_name"]),
            y_interval=(row[f"{ERROR}_lo"], row.get(f"{ERROR}_hi") or row[ERROR]),
        )
        for row in of(rows, "front")
        if row.get(ERROR) is not None
    ]
    return {"front.png": plot_front(points, COST, ERROR, by_group=True)} if points else {}


def group(name: str) -> str:
    return "ours" if name.startswith("ours") else "plain" if name == "plain" else "peers"


def derived(rows: Rows, cells: Path) -> Rows:
    """Differences to the learned adaptor, times, and the fronts' hypervolumes."""
    named = {row["row"]: row for row in of(rows, "methods")}

    def learned(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["stage"] != "methods":
            return None
        return named.get(f"{str(row['row']).partition(' ')[0]} ours learned 0")

    rows = add_differences(rows, cells, [ERROR], learned, "learned")
    pairs = {
        f"{name} < {rival}": (named[name], named[rival])
        for name in [*LEARNED, "8 ours span"]
        for rival in named
        if name in named and (rival in (LEARNED.get(name), "8 plain") or rival.startswith(RIVALS))
    }
    rows = renewed(rows, "pairs", difference_rows(cells, "pairs", pairs, [ERROR]), pairs)
    far = {row["row"]: row for row in of(rows, "distances")}
    if {"8 plain", "4 plain"} <= far.keys():
        bars = {
            name: (far[name], far["8 plain"], far["4 plain"])
            for name in far
            if name in LEARNED or name == SCHEDULE
        }
        rows = renewed(rows, "slacks", slack_rows(cells, bars, 0.1), bars)
    rows = add_latency(rows, cells, "latency", "steps", _label)
    same = {"ours, identity / DeepCache": ("ours_after_upsampler", "deepcache_2_b2")}
    if times := time_ratio_rows(rows, cells, "latency", "steps", "8", same):
        rows = [row for row in rows if row["stage"] != "times"] + times
    return with_volumes(rows, cells)


def with_volumes(rows: Rows, cells: Path) -> Rows:
    """The rows with the hypervolumes of the front's methods, as rows of a stage `fronts`."""
    front = of(rows, "front")
    plain = [row for row in front if row["method_name"] == "plain"]
    sets = {
        "ours": [row for row in front if group(row["method_name"]) != "peers"],
        "peers": [row for row in front if group(row["method_name"]) != "ours"],
    }
    if not plain:
        return rows
    corner = max(plain, key=lambda row: row[COST]), max(plain, key=lambda row: row[ERROR])
    made = front_rows(rows, cells, sets, cost=COST, error=ERROR, corner=corner)
    return [row for row in rows if row["stage"] != "fronts"] + made


def _label(row: dict[str, Any]) -> tuple[str, str] | None:
    """(steps, method) of the latency cell in which a row was timed."""
    if row["stage"] != "methods":
        return None
    steps, _, name = str(row["row"]).partition(" ")
    if name.startswith("fewer "):
        return name.removeprefix("fewer "), "none"
    return steps, "none" if name == "plain" else name.replace(" ", "_")


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
