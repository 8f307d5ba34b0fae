"""Table and figure of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import make_table

PERPLEXITY, MEMORY, SHARE = "val/perplexity", "train/bytes_all", "memory/share_of_full_training"
NAMES = {
    "base": "full precision",
    "longer": "full precision, trained as long as the others",
    "nearest": "rounding to nearest",
}
PARTS = [f"train/{name}" for name in ("params_trained", "bytes_weights", "bytes_gradients")]
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """Perplexity by bits and seed, then what each way of training takes."""
    rates = [row for row in rows if row["stage"] == "rates"]
    named = [named_row(row) for row in rows if row["stage"] != "rates"]
    full = {row["seed"]: row[MEMORY] for row in named if "LSQ" in row["way"]}
    trained = [
        {**row, SHARE: row[MEMORY] / full[row["seed"]]}
        for row in named
        if row["stage"] == "trained" and row["bits"] == "4" and row["seed"] in full
    ]
    trained = [row for row in trained if row["seed"] == min(full)]
    memory = [*PARTS, "train/bytes_optimizer", MEMORY, SHARE, "train/bytes_peak"]
    better = {name: "lower" for name in (PERPLEXITY, SHARE)}
    return "\n".join(
        [
            "# Perplexity on held-out text",
            "",
            make_table(named, ["way"], ["bits", "seed"], [PERPLEXITY], better).markdown(),
            "# What training takes, 4 bits",
            "",
            make_table(trained, ["way"], [], memory, better).markdown(),
            "# Other learning rates, 4 bits, seed 0",
            "",
            make_table(rates, ["row"], [], [PERPLEXITY], better).markdown() if rates else "",
        ]
    )


def figures(rows: Rows) -> dict[str, Figure]:
    """Perplexity over memory of each training, a front for each number of bits."""
    points = [
        Point(
            row[MEMORY],
            row[PERPLEXITY],
            label=row["way"] if row["seed"] == 0 else "",
            group=f"{row['bits']} bits",
        )
        for row in map(named_row, (row for row in rows if row["stage"] == "trained"))
    ]
    return {"memory.png": plot_front(points, MEMORY, PERPLEXITY, by_group=True)}


def named_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the words that name it in the table."""
    bits = row.get("bits")
    return {
        **row,
        "way": NAMES.get(row["stage"]) or row["way"],
        "bits": "32" if bits is None else str(bits),
    }
