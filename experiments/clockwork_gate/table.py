"""Table and figures of the experiment, from `results.csv` alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.finished import from_csv
from edgegen.runs.heatmap import HeatMap, heatmap_figure
from edgegen.runs.tables import Score, score_text

ERRORS = {"rmse": "quality/ode_rmse", "efflite0": "quality/ode_efflite0"}
MEASURABLE = "robustness/points_measurable"
NUMBERS = {"levels": "levels.csv", "points": "points.csv"}  # stage → a file of the cell
Rows = list[dict[str, Any]]


def derived(rows: Rows, cells: Path) -> Rows:
    """The tables that the command leaves beside its metrics, as rows of their own."""
    found: Rows = []
    for row in (row for row in rows if row["stage"] == "premise"):
        for stage, name in NUMBERS.items():
            file = cells / str(row["cell"]) / name
            if not file.is_file():  # a fresh clone keeps what is committed
                return rows
            made = from_csv(file.read_text(encoding="utf-8"))
            found += [
                {"stage": stage, **each, "cell": row["cell"], "code": row["code"]} for each in made
            ]
    return [row for row in rows if row["stage"] not in NUMBERS] + found


def table(rows: Rows) -> str:
    """Where reuse costs something that can be measured, and what is behind it."""
    levels, points = of(rows, "levels"), of(rows, "points")
    lines = ["# What identity reuse costs, by steps and clock", ""]
    for row in of(rows, "premise"):
        for error, name in ERRORS.items():
            count, tried = row[f"{MEASURABLE}_{error}"], row["robustness/points"]
            lines.append(f"- `{name}`: measurable at {count:.4g} of {tried:.4g} points.")
    if not points:
        return "\n".join([*lines, "Not run yet."]) + "\n"
    lines += [
        "",
        "| steps | clock | error | plain | cost of reuse | cost / width of its interval | |",
        "| ---: | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in points:
        cost = score_text(Score(row["cost"], row["cost_lo"], row["cost_hi"]))
        told = "measurable" if row["measurable"] else ""
        lines.append(
            f"| {row['steps']} | {row['clock']} | `{ERRORS[row['error']]}` | {row['base']:.4f} "
            f"| {cost} | {row['ratio']:.1f} | {told} |"
        )
    n = max(int(row["n"]) for row in points)
    lines += [
        "",
        f"{n} prompts of the dev half, one noise each; intervals over prompts.",
        "",
        "# How far a picture moves when the features of a level are disturbed in one step",
        "",
    ]
    steps = sorted({int(row["step"]) for row in levels})
    for error in ERRORS:
        lines += [f"Mean {error}:", "", *grid(levels, steps, error), ""]
    lines += ["# How far features move from step to step, relative to their size", ""]
    lines += [*grid(levels, steps[1:], "move"), ""]
    return "\n".join(lines)


def grid(levels: Rows, steps: list[int], column: str) -> list[str]:
    """Markdown lines: a row a level, a column a step."""
    lines = [
        "| level | " + " | ".join(f"step {step}" for step in steps) + " |",
        "| --- |" + " ---: |" * len(steps),
    ]
    values = values_of(levels, steps, column)
    for level, row in enumerate(values):
        lines.append(f"| {level} | " + " | ".join(f"{value:.4f}" for value in row) + " |")
    return lines


def values_of(levels: Rows, steps: list[int], column: str) -> list[list[float]]:
    known = {(int(row["level"]), int(row["step"])): row.get(column) for row in levels}
    count = 1 + max(level for level, _ in known)
    found = [[known.get((level, step)) for step in steps] for level in range(count)]
    return [[math.nan if value in (None, "") else float(value) for value in r] for r in found]


def figures(rows: Rows) -> dict[str, Figure]:
    """Heat maps of what is disturbed, of what moves, and of what reuse costs."""
    levels, points = of(rows, "levels"), of(rows, "points")
    if not points:
        return {}
    steps = sorted({int(row["step"]) for row in levels})
    names = [f"level {level}" for level in range(1 + max(int(row["level"]) for row in levels))]
    titles = {"rmse": "rmse of disturbance", "efflite0": "efflite0 of disturbance"}
    maps = [
        HeatMap(title, values_of(levels, steps, name), names, [str(s) for s in steps], "", "step")
        for name, title in {**titles, "move": "move of features"}.items()
    ]
    for error in ERRORS:
        own = {(row["steps"], row["clock"]): row for row in points if row["error"] == error}
        cost = {place: row["cost"] for place, row in own.items()}
        marked = [place for place, row in own.items() if row["measurable"]]
        maps.append(HeatMap.of(f"{error}: cost of reuse", cost, "steps", "clock", marked))
    return {"premise.png": heatmap_figure(maps)}


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
