"""Table of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """A row a measured overhead."""
    lines = [
        "| | against | time | without | ratio [95 %] | rounds | threads |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['what']} | {row['against']} | {row['seconds']:.3f} s "
        f"| {row['seconds_without']:.3f} s "
        f"| {row['ratio']:.3f} [{row['ratio_lo']:.3f}, {row['ratio_hi']:.3f}] "
        f"| {row['rounds']:.0f} | {row['threads']:.0f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def figures(rows: Rows) -> dict[str, Figure]:
    """None: the table says it all."""
    return {}
