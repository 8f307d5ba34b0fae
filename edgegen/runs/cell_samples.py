"""What takes the samples of several cells of an experiment: differences, times, fronts.

All functions take an experiment's rows and the folder of its cells, and give the rows with more
columns. A row whose cell is not on disk, as in a fresh clone, keeps the columns that it has.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..cost.latency import paired_ratio
from ..metrics.quality.bootstrap import Estimate, paired_difference
from .finished import Row, from_csv
from .fronts import hypervolume_gain
from .pictures import grid, picture_name, read_settings

_LATENCY = "cost/seconds_per_image"
_ENDS = {"": "value", "_lo": "low", "_hi": "high", "_n": "n"}


def read_scores(folder: Path, metric: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """A metric picture by picture, (N,) float64, and (prompt, seed) of each, from `scores.csv`.

    Pictures that were given have their file's name in place of the prompt. NaN where a metric says
    nothing.

    Raises ValueError where it is not there.
    """
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        raise ValueError(f"{folder}: {metric} is not among its scores of single pictures")
    asked = [(row.get("prompt") or row["file"], row.get("seed", "")) for row in rows]
    return np.array([float(row[metric] or "nan") for row in rows]), asked


def add_differences(
    rows: Sequence[Row],
    cells: Path,
    metrics: Sequence[str],
    against: Callable[[Row], Row | None],
    name: str,
) -> list[Row]:
    """`METRIC_vs_NAME`: the mean difference to another row's pictures, with its paired interval.

    Args:
        against: the row that a row is compared with; None for none. Both must be of the same
            prompts and noise.
    """
    made = []
    for row in rows:
        other = against(row)
        row = dict(row)
        if other is not None and there(cells, row) and there(cells, other):
            for metric in metrics:
                (ours, asked), (theirs, same) = (
                    read_scores(cells / each["cell"], metric) for each in (row, other)
                )
                if asked != same:
                    raise ValueError(f"cells {row['cell']} and {other['cell']}: other prompts")
                prompts = np.array([prompt for prompt, _ in asked])
                row |= columns(f"{metric}_vs_{name}", paired_difference(ours, theirs, prompts))
        made.append(row)
    return made


def add_latency(
    rows: Sequence[Row],
    cells: Path,
    stage: str,
    axis: str,
    place: Callable[[Row], tuple[str, str] | None],
) -> list[Row]:
    """`cost/seconds_per_image_interleaved`, its quartiles (`_q25`, `_q75`), and the time ratio.

    Args:
        stage, axis: cells of the command `compare`, and the axis that names them.
        place: of a row, the value of that axis and the label in the comparison; None for none.
    """
    timed: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        if row["stage"] == stage and there(cells, row):
            text = (cells / row["cell"] / "results.csv").read_text(encoding="utf-8")
            timed |= {(str(row[axis]), str(each["method"])): each for each in from_csv(text)}
    made = []
    for row in rows:
        key = place(row)
        found = None if key is None else timed.get(key)
        if found is not None:
            name = f"{_LATENCY}_interleaved"
            row = row | {name: found[_LATENCY]}
            row |= {f"{name}{end}": found[f"{_LATENCY}{end}"] for end in ("_q25", "_q75")}
            if found.get("cost/time_ratio") is not None:
                ends = ("", "_lo", "_hi")
                row |= {f"cost/time_ratio{end}": found.get(f"cost/time_ratio{end}") for end in ends}
        made.append(dict(row))
    return made


def time_ratio_rows(
    rows: Sequence[Row],
    cells: Path,
    stage: str,
    axis: str,
    point: str,
    pairs: Mapping[str, tuple[str, str]],
) -> list[Row]:
    """Rows of a stage `times`, named `pair`: how long one method takes as a share of another.

    Args:
        stage, axis, point: the comparison in which both took turns: its stage, and where on which
            axis it is.
        pairs: by name, the labels of the two.
    """
    made = []
    for row in rows:
        if row["stage"] != stage or str(row[axis]) != point or not there(cells, row):
            continue
        text = (cells / row["cell"] / "times.csv").read_text(encoding="utf-8")
        taken: dict[str, dict[int, float]] = {}
        for each in from_csv(text):
            taken.setdefault(str(each["method"]), {})[each["round"]] = each["seconds"]
        for name, (first, second) in pairs.items():
            rounds = sorted(taken[first])
            found = paired_ratio(
                *([taken[label][number] for number in rounds] for label in (first, second))
            )
            ends = {"": found.value, "_lo": found.low, "_hi": found.high, "_n": found.n}
            new = {f"cost/time_ratio{end}": value for end, value in ends.items()}
            made.append({"stage": "times", "pair": name} | new)
    return made


def difference_rows(
    cells: Path,
    stage: str,
    pairs: Mapping[str, tuple[Row, Row]],
    metrics: Sequence[str],
    cluster: Callable[[str], str] = str,
) -> list[Row]:
    """Rows of a stage, named `pair`: the means of `metrics` of a first row less those of a second.

    Pairs whose cells are not on disk are left out, and so are metrics that a row lacks, and samples
    of which a metric says nothing (NaN).

    Args:
        cluster: of a prompt, what its samples share that are no independent ones.
    """
    made = []
    for name, (first, second) in pairs.items():
        if not there(cells, first) or not there(cells, second):
            continue
        found: Row = {"stage": stage, "pair": name}
        for metric in metrics:
            if not all(row.get(metric) is not None for row in (first, second)):
                continue
            (ours, asked), (theirs, same) = (
                read_scores(cells / row["cell"], metric) for row in (first, second)
            )
            if asked != same:
                raise ValueError(f"{name}: cells {first['cell']}, {second['cell']}: other prompts")
            clusters = np.array([cluster(prompt) for prompt, _ in asked])
            known = ~np.isnan(ours - theirs)
            if known.any():
                estimate = paired_difference(ours[known], theirs[known], clusters[known])
                found |= columns(f"{metric}_change", estimate)
        made.append(found)
    return made


def renewed(
    rows: Sequence[Row],
    stage: str,
    found: Sequence[Row],
    parts: Mapping[str, Sequence[Row]],
    key: str = "pair",
) -> list[Row]:
    """The rows, those of a stage renewed: what was found, and else what was kept of the same cells.

    Figures of cells that have been run anew since would stand beside others than they are of.

    Args:
        found: the stage's rows, as far as they could be computed here.
        parts: by name, the rows that each is of, in the order of the result.
        key: the column that holds the name. Their cells are kept as `cells`.
    """
    cells = {name: " ".join(str(row.get("cell")) for row in each) for name, each in parts.items()}
    known = {row[key]: row for row in rows if row["stage"] == stage}
    known = {name: row for name, row in known.items() if row.get("cells") == cells.get(name)}
    known |= {row[key]: row | {"cells": cells[row[key]]} for row in found}
    others = [row for row in rows if row["stage"] != stage]
    return others + [known[name] for name in parts if name in known]


def first_pictures(cells: Path, rows: Mapping[str, Row], columns: int = 7) -> Image.Image:
    """The first pictures of some cells, unpicked: a row of the grid a cell, a column a prompt.

    Args:
        rows: what to write under a row's first picture, to the row of the experiment; under the
            others stand their prompts.

    Raises FileNotFoundError where a cell is not on disk.
    """
    shown = []
    for label, row in rows.items():
        for number in range(columns):
            file = cells / str(row["cell"]) / "images" / picture_name(number)
            made = read_settings(file) or {}
            shown.append((file, str(made.get("prompt", "")) if number else label))
    return grid(shown, columns).quantize(256, Image.Quantize.MAXCOVERAGE)


def front_rows(
    rows: Sequence[Row],
    cells: Path,
    groups: Mapping[str, Sequence[Row]],
    *,
    cost: str,
    error: str,
    corner: tuple[Row, Row],
) -> list[Row]:
    """The rows of a stage `fronts`: how much more one group of methods beats than another.

    Args:
        groups: two, by name; the second is what the first is held against.
        corner: the rows whose cost and whose mean error, a tenth more each, count as no gain.
    """
    (ours, first), (theirs, second) = groups.items()
    everyone = [*first, *second, *corner]
    if not first or not second or not all(there(cells, row) for row in everyone):
        return [row for row in rows if row["stage"] == "fronts"]
    errors = {id(row): read_scores(cells / row["cell"], error) for row in everyone}
    asked = errors[id(corner[1])][1]
    if any(others != asked for _, others in errors.values()):
        raise ValueError("fronts: the cells were made with different prompts or noise")
    reference = (1.1 * corner[0][cost], 1.1 * float(errors[id(corner[1])][0].mean()))
    sets = [
        (np.array([row[cost] for row in group]), np.stack([errors[id(r)][0] for r in group]))
        for group in (first, second)
    ]
    found = hypervolume_gain(
        sets[0],
        sets[1],
        reference,
        clusters=np.array([prompt for prompt, _ in asked]),
    )
    return [
        {"stage": "fronts", "front": name} | columns("quality/hypervolume", each)
        for name, each in zip((ours, theirs, f"{ours} − {theirs}"), found, strict=True)
    ]


def columns(name: str, estimate: Estimate) -> Row:
    """An estimate as NAME, NAME_lo, NAME_hi and NAME_n."""
    return {f"{name}{end}": getattr(estimate, part) for end, part in _ENDS.items()}


def there(cells: Path, row: Row) -> bool:
    """Whether a row's cell is on disk."""
    return row.get("cell") is not None and (cells / str(row["cell"]) / "run.json").is_file()
