"""Table and figures of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.tables import make_table

PUBLISHED = 33  # percent of the FLOPs saved, as the paper has it
STEPS = {"inversion": (1000, 10), "generation": (50, 10)}  # of the paper, and counted
BRANCHES = {"inversion": 1, "generation": 3}
CONV, ALL = "cost/tflops_conv_linear", "cost/tflops_all"
EDITS = [
    CONV,
    ALL,
    "quality/source_rmse",
    "quality/clip_judge",
    "quality/directional_judge",
    "cost/seconds_per_image",
]
CHANGES = ["quality/paired_rmse", "quality/paired_efflite0"]
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """The full-size model's work beside the paper's saving; then the embedded model's edits."""
    parts = ["# Full size, no weights: 1000 inversion steps, then 50 steps of three branches", ""]
    parts += [full_size(of(rows, "full_size"))]
    for stage, title in (
        ("edits", "The embedded model's edits, 200 inversion steps"),
        ("changed", "What reuse changes: against the plain edit with as many steps"),
        ("fewer", "What fewer steps change: against the plain edit with 100"),
    ):
        own, names = of(rows, stage), EDITS if stage == "edits" else CHANGES
        metrics = [name for name in names if any(row.get(name) is not None for row in own)]
        axes = ["steps", "how"] if stage == "edits" else ["steps"]
        made = make_table(own, axes, [], metrics).markdown() if metrics else "Not run yet.\n"
        parts += [f"# {title}", "", made]
    return "\n".join(parts)


def full_size(rows: Rows) -> str:
    """TFLOPs of one edit; work is in proportion to the steps, an even number of them."""
    lines = [
        "| | TFLOPs conv+linear | saved | published | TFLOPs all | saved |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    totals: dict[str, dict[str, float]] = {}
    for row in rows:
        steps, counted = STEPS[row["part"]]
        for cost in (CONV, ALL):
            here = totals.setdefault(row["how"], {})
            work = row[cost] * BRANCHES[row["part"]] * steps / counted
            here[cost] = here.get(cost, 0.0) + work
    for how, total in totals.items():
        saved = [100 * (1 - total[cost] / totals["plain"][cost]) for cost in (CONV, ALL)]
        texts = ["–", "–"] if how == "plain" else [f"{each:.1f} %" for each in saved]
        published = "–" if how == "plain" else f"{PUBLISHED} %"
        lines.append(
            f"| {how} | {total[CONV]:.2f} | {texts[0]} | {published} | {total[ALL]:.2f} "
            f"| {texts[1]} |"
        )
    return "\n".join([*lines, "", "1 MAC = 2 FLOPs; the UNet alone; clock 2.", ""])


def figures(rows: Rows) -> dict[str, Figure]:
    """None: six rows need no plot."""
    return {}


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
