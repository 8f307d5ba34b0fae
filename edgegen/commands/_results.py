"""What a sweep leaves beside its cells: results, a table, a plot of the front, a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..runs.atomic import write_atomic
from ..runs.collection_report import Shown, write_collection_report
from ..runs.finished import CELLS, Row, from_csv, to_csv
from ..runs.pareto import Point, picture_bytes, plot_front
from ..runs.tables import Better, make_table


def write_results(
    folder: Path,
    rows: Sequence[Row],
    axes: Sequence[str],
    objectives: Mapping[str, str],
    title: str,
) -> None:
    """Write `results.csv`, `table.md`, `report.html`, and plots of the objectives.

    `pareto.png` is of the first two, `pareto2.png` of the first and the third, and so on.

    Args:
        rows: one a run, with `cell` (name of its folder under `cells`), the axes' values, the
            objectives with their intervals, and `error`.
        objectives: metric → `minimize` or `maximize`.
    """
    text = to_csv(rows)
    write_atomic(folder / "results.csv", text)
    good = [row for row in from_csv(text) if not row.get("error")]
    better: dict[str, Better] = {
        name: "lower" if way == "minimize" else "higher" for name, way in objectives.items()
    }
    once = list({tuple(row[axis] for axis in axes): row for row in good}.values())
    table = make_table(once, axes, [], list(objectives), better)
    write_atomic(folder / "table.md", table.markdown())
    plots = []
    first, *others = objectives.items()
    for number, other in enumerate(others):
        png = picture_bytes(front_plot(once, axes, dict([first, other])))
        write_atomic(folder / f"pareto{number + 1 if number else ''}.png", png)
        plots.append((f"{first[0]} against {other[0]}", png))
    cells = {row["cell"]: {axis: row[axis] for axis in axes} for row in rows if row["cell"]}
    write_collection_report(
        folder / "report.html",
        [Shown.read(folder / CELLS / str(cell), named) for cell, named in cells.items()],
        title=title,
        lead=f"{len(once)} different runs, each in {folder / CELLS}.",
        metrics=list(objectives),
        plots=plots,
    )


def front_plot(rows: Sequence[Row], axes: Sequence[str], objectives: Mapping[str, str]) -> Figure:
    """The plot of two objectives; points are coloured by the first axis that has few texts."""
    x, y = objectives
    colour = next((axis for axis in axes if _few_texts([row[axis] for row in rows])), None)
    points = [
        Point(
            row[x],
            row[y],
            label=" ".join(str(row[axis]) for axis in axes if row[axis] is not None)[:40],
            group=str(row[colour]) if colour else "run",
            x_interval=_interval(row, x),
            y_interval=_interval(row, y),
        )
        for row in rows
    ]
    ways = objectives[x] == "maximize", objectives[y] == "maximize"
    return plot_front(points, x, y, maximize=ways)


def _few_texts(values: Sequence[object]) -> bool:
    different = set(values)
    return 1 < len(different) <= 8 and all(isinstance(value, str) for value in different)


def _interval(row: Row, name: str) -> tuple[float, float] | None:
    low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
    return None if low is None or high is None else (low, high)
