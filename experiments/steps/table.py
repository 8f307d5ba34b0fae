"""Table and figures of the experiment, from `results.csv` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from edgegen.media.pictures import read_picture
from edgegen.metrics.quality.distribution import compare_features
from edgegen.metrics.quality.efflite0 import EffLite0
from edgegen.metrics.quality.kept import KeptFeatures
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
SIZES = (500, 1000, 2000)
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """The dozen, how far apart equal sets are, then the screening of all cells."""
    screen, final = stages(rows)
    metrics = [name for name in FINAL if any(row.get(name) is not None for row in final)]
    chosen = make_table(final, AXES, [], metrics).markdown() if metrics else "Not run yet.\n"
    parts = ["# The chosen points", "", chosen]
    floors = [row for row in rows if row["stage"] == "floors"]
    told = make_table(floors, ["n"], [], FINAL[1:3]).markdown() if floors else "Not run yet.\n"
    parts += ["# Noise floors: one point against itself with other noise", "", told]
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


def derived(rows: Rows, cells: Path) -> Rows:
    """Rows of a stage `floors`: distances between the two runs of `repeat`, at several sizes."""
    runs = [cells / row["cell"] for row in rows if row["stage"] == "repeat"]
    if len(runs) < 2 or not all((run / "images").is_dir() for run in runs):
        return rows
    backbone, rng = EffLite0(), np.random.default_rng(0)
    sets = []
    for run in runs:
        files = sorted((run / "images").glob("*.png"))
        kept = KeptFeatures(backbone, run / "features")
        sets.append(kept([read_picture(file) for file in files]))
    rows = [row for row in rows if row["stage"] != "floors"]
    for size in SIZES:
        drawn = [each[torch.tensor(rng.permutation(len(each))[:size])] for each in sets]
        found = compare_features(drawn[0], drawn[1], "efflite0", all_features=False)
        rows.append(
            {"stage": "floors", "n": size}
            | {
                f"{name}{end}": found[f"{name}{end}"].item()
                for name in FINAL[1:3]
                for end in ("", "_lo", "_hi", "_n")
            }
        )
    return rows


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
