"""Table of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """A row a method of each model."""
    lines = [
        "| model | method | time | share of the plain time [95 %] | share of the plain TFLOPs "
        "| saves what its MACs promise | rounds | threads |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        ends = f" [{row['ratio_lo']:.3f}, {row['ratio_hi']:.3f}]" if row["ratio_lo"] else ""
        lines.append(
            f"| {row['model']} | {row['method']} | {row['seconds']:.3f} s "
            f"| {row['ratio']:.3f}{ends} | {row['tflops_ratio']:.3f} | {met(row)} "
            f"| {row['rounds']:.0f} | {row['threads']:.0f} |"
        )
    return "\n".join([*lines, ""])


def met(row: dict[str, Any]) -> str:
    """Whether the time saved is at least the MACs saved."""
    if row["method"] == "plain":
        return "–"
    share = row["tflops_ratio"]
    if row["ratio_hi"] <= share:
        return "yes"
    return "no" if row["ratio_lo"] > share else "within noise"


def figures(rows: Rows) -> dict[str, Figure]:
    """None: the table says it all."""
    return {}
