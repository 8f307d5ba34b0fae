"""Tables and figures of the experiment, from `results.csv` alone; differences, from cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.cell_samples import add_latency, difference_rows, renewed
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import make_table, pairs_table

BOPS, TIME = "cost/tbops", "cost/seconds_per_image_interleaved"
ERROR, CHANGE = "quality/ode_rmse", "quality/paired_rmse"
DIFFERENCE = f"{CHANGE}_change"
# (should err less, than)
PAIRS = [
    (f"{bits}, adaptor {trained} {seed}", f"{bits}, {other}{tail}")
    for bits in ("w8a8", "w4a8")
    for seed in (0, 1)
    for trained, other, tail in (
        ("full", "identity", ""),
        (bits, "identity", ""),
        (bits, "adaptor full", f" {seed}"),
    )
]
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """What the adaptors are worth on quantized networks; then clock × bits × steps."""
    parts = ["# Adaptors at clock 2, 8 steps", "", adaptors(rows)]
    for title, stage, axes, metrics in (
        ("Change against 50 steps in full precision", "changed", ["row"], [CHANGE]),
        ("Clock, bits, steps", "front", ["form", "steps"], [BOPS, TIME, ERROR]),
        ("Training, and size", "adaptors", ["row"], ["train/loss_relative"]),
        ("Quantized networks", "quantized", ["bits"], ["cost/layers_stored_mb"]),
    ):
        parts += [f"# {title}", "", shown(of(rows, stage), axes, metrics)]
    return "\n".join(parts)


def adaptors(rows: Rows) -> str:
    """Paired differences of the change, with the side of zero on which they lie."""
    return pairs_table(of(rows, "pairs"), DIFFERENCE, "errs less | than") or "Not run yet.\n"


def shown(rows: Rows, axes: list[str], columns: list[str]) -> str:
    metrics = [name for name in columns if any(row.get(name) is not None for row in rows)]
    return make_table(rows, axes, [], metrics, {}).markdown() if metrics else "Not run yet.\n"


def figures(rows: Rows) -> dict[str, Figure]:
    """Error against BOPs, and against time where it was taken."""
    made = {}
    for name, cost in (("front.png", BOPS), ("time.png", TIME)):
        points = [
            Point(
                row[cost],
                row[ERROR],
                label=f"{row['form']} {row['steps']}",
                group=str(row["form"]).partition(" ")[0],
                y_interval=(row[f"{ERROR}_lo"], row.get(f"{ERROR}_hi") or row[ERROR]),
            )
            for row in of(rows, "front")
            if row.get(ERROR) is not None and row.get(cost) is not None
        ]
        if points:
            made[name] = plot_front(points, cost, ERROR, by_group=True)
    return made


def derived(rows: Rows, cells: Path) -> Rows:
    """Paired differences, and times from the runs in which methods took turns."""
    rows = add_latency(rows, cells, "latency", "steps", _label)
    named = {row["row"]: row for row in of(rows, "changed")}
    pairs = {
        f"{less} < {more}": (named[less], named[more])
        for less, more in PAIRS
        if less in named and more in named
    }
    return renewed(rows, "pairs", difference_rows(cells, "pairs", pairs, [CHANGE]), pairs)


def _label(row: dict[str, Any]) -> tuple[str, str] | None:
    """(steps, method) of the latency cell in which a row was timed."""
    if row["stage"] != "front":
        return None
    form = str(row["form"])
    return str(row["steps"]), "none" if form == "full" else form.replace(" ", "_")


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
