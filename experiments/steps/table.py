"""Table and figures of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import make_table

ERROR, COST, DISTANCE = "quality/ode_rmse", "cost/tflops_all", "quality/fd_pca64_efflite0"
FINAL = [
    COST,
    DISTANCE,
    "quality/kid_efflite0",
    "quality/concept_accuracy",
    "quality/clip_judge",
    "quality/copy_rate",
]
AXES = ["guidance", "steps", "scheduler"]
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """The dozen, then the screening of all cells."""
    screen, final = stages(rows)
    metrics = [name for name in FINAL if any(row.get(name) is not None for row in final)]
    chosen = make_table(final, AXES, [], metrics).markdown() if metrics else "Not run yet.\n"
    parts = ["# The chosen points", "", chosen]
    parts += ["# Screening: paired error to the base model's 100-step solution", ""]
    for guidance in sorted({row["guidance"] for row in screen}):
        own = [row for row in screen if row["guidance"] == guidance]
        parts += [f"## Guidance {guidance:g}", ""]
        parts += [make_table(own, ["scheduler"], ["steps"], [ERROR]).markdown()]
    return "\n".join(parts)


def figures(rows: Rows) -> dict[str, Figure]:
    """Paired error of all cells, a front for each guidance; distance of the chosen ones."""
    screen, final = stages(rows)
    chosen = {tuple(row[axis] for axis in AXES) for row in final}
    points = [point(row, ERROR, tuple(row[axis] for axis in AXES) in chosen) for row in screen]
    found = {"paired_error.png": plot_front(points, COST, ERROR, by_group=True)}
    if any(row.get(DISTANCE) is not None for row in final):
        points = [point(row, DISTANCE, True) for row in final]
        found["distance.png"] = plot_front(points, COST, DISTANCE)
    return found


def stages(rows: Rows) -> tuple[Rows, Rows]:
    """The rows of the screening and of the final stage."""
    return tuple([row for row in rows if row["stage"] == name] for name in ("screen", "final"))


def point(row: dict[str, Any], metric: str, named: bool) -> Point:
    """A cell in a figure, by its cost and `metric`."""
    ends = row.get(f"{metric}_lo"), row.get(f"{metric}_hi")
    label = f"{row['steps']} {row['scheduler'].removesuffix('Multistep').removesuffix('Discrete')}"
    return Point(
        row[COST],
        row[metric],
        label=label if named else "",
        group=f"guidance {row['guidance']:g}",
        y_interval=None if None in ends else ends,
    )
