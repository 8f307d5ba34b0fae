"""Table of the experiment, from `results.csv` alone."""

from __future__ import annotations

from statistics import median
from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
ALLOWED = 64  # kB a frame


def table(rows: Rows) -> str:
    """Memory and time by frames, and what a second process gains."""
    lines = [
        "| schedule | frames | peak memory | growth since the shortest | seconds | ms a frame |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for schedule in ("frames", "steps"):
        own = [r for r in rows if r["what"] == "length" and r["schedule"] == schedule]
        first = own[0]
        for row in own:
            more = row["frames"] - first["frames"]
            growth = f"{(row['peak_kb'] - first['peak_kb']) / more:.1f} kB a frame" if more else "–"
            lines.append(
                f"| {schedule} | {row['frames']:.0f} | {row['peak_kb'] / 1024:.1f} MB | {growth} "
                f"| {row['seconds']:.1f} | {1000 * row['seconds'] / row['frames']:.1f} |"
            )
    shared = [row for row in rows if row["what"] == "shared"]
    rounds = sorted({row["round"] for row in shared})
    by = {(row["processes"], row["round"]): row["seconds"] for row in shared}
    ratios = [by[2, n] / by[1, n] for n in rounds]
    same = len({row["pictures"] for row in shared}) == 1
    one, two = (median(by[count, n] for n in rounds) for count in (1, 2))
    lines += [
        "",
        f"Bar: at most {ALLOWED} kB a frame.",
        "",
        f"Two processes take {median(ratios):.2f} of one's time ({one:.1f} s, {two:.1f} s; rounds "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}): an efficiency of "
        f"{1 / (2 * median(ratios)):.0%}. Pictures are {'the same' if same else 'not the same'}.",
        "",
    ]
    return "\n".join(lines)


def figures(rows: Rows) -> dict[str, Figure]:
    """None: the table says it all."""
    return {}
