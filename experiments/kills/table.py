"""Table of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """A row a command; then a row a kill."""
    lines = ["| | kills | finished work lost | numbers changed |", "| --- | ---: | ---: | ---: |"]
    for name in dict.fromkeys(row["command"] for row in rows):
        own = [row for row in rows if row["command"] == name]
        lost, changed = sum(row["lost"] for row in own), sum(not row["same"] for row in own)
        lines.append(f"| {name} | {len(own)} | {lost} | {changed} |")
    lines += ["", "| | seed | killed after | work done by then |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['command']} | {row['seed']} | {row['after_seconds']:.1f} s "
        f"| {row['done']} of {row['total']} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def figures(rows: Rows) -> dict[str, Figure]:
    """None: there is nothing to see."""
    return {}
