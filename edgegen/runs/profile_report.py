"""The report of a profile: one HTML file that needs nothing beside it, plots and tables."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .atomic import write_atomic
from .page import metric, record_values, render
from .profile_plots import roofline_plot, step_change_plot
from .profile_tables import Analysis, html_tables, module_row


def write_profile(folder: str | Path, analysis: Analysis, record: Mapping[str, Any]) -> list[Path]:
    """Write `roofline.png`, `step_change.png`, `profile.csv`, `step_change.csv`, `report.html`.

    Those of the steps only where the changes are known; older ones are removed.

    Args:
        record: the content of `run.json`; what it does not hold is left out.

    Returns the files, the report last.
    """
    folder = Path(folder)
    roofline = roofline_plot(analysis.targets, analysis.machine, analysis.devices)
    files = [
        write_atomic(folder / "roofline.png", roofline),
        write_atomic(folder / "profile.csv", table_csv(analysis)),
    ]
    changes = b""
    if analysis.changes:
        changes = step_change_plot(analysis.changes)
        files.append(write_atomic(folder / "step_change.png", changes))
        files.append(write_atomic(folder / "step_change.csv", _changes_csv(analysis.changes)))
    else:
        for name in ("step_change.png", "step_change.csv"):
            (folder / name).unlink(missing_ok=True)
    return [
        *files,
        write_atomic(folder / "report.html", _html(analysis, record, roofline, changes)),
    ]


def table_csv(analysis: Analysis) -> str:
    """A row a module; times in seconds and work of one call of its network.

    `seconds` is inclusive, `own_seconds` exclusive; `macs_*` and `bytes` are inclusive;
    `roof_seconds` is the least inclusive time by this machine's roofline.
    """
    rows = [module_row(analysis, each, row) for each in analysis.profiles for row in each.rows]
    return _csv(list(rows[0]) if rows else [], [list(row.values()) for row in rows])


def _changes_csv(changes: Mapping[str, Sequence[float]]) -> str:
    width = max(map(len, changes.values()))
    heads = ["module", *(f"evaluation_{step}" for step in range(2, width + 2))]
    return _csv(heads, [[name, *row] for name, row in changes.items()])


def _csv(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return stream.getvalue()


def _html(analysis: Analysis, record: Mapping[str, Any], roofline: bytes, changes: bytes) -> str:
    return render(
        "profile.html",
        ("sortable.css", "profile.css"),
        title=f"Profile of {analysis.model}",
        lead="Where the time of one picture goes, module by module, and how near each comes to "
        "what this machine could do.",
        warnings=analysis.warnings,
        figures=_figures(analysis),
        roofline=_source(roofline),
        roofline_notes=_ROOFLINE_NOTES,
        tables=html_tables(analysis),
        changes=_source(changes) if changes else "",
        changes_notes=_CHANGE_NOTES if changes else [analysis.why_no_changes],
        **record_values(record),
    )


_ROOFLINE_NOTES = (
    "A point is what a module does itself, without the modules that have rows of their own; its "
    "area is its share of the time. FLOPs are two for each MAC, attention products included. "
    "Bytes are what unfused operators read and write: an upper bound, so a true point lies at or "
    "to the right of its place.",
    "A point above the slanted roof had its data in a cache. The roofs of other devices come from "
    "data sheets and are estimates; their peaks hold at the width named, where each number also "
    "moves fewer bytes.",
)
_CHANGE_NOTES = (
    "The L2 norm of the difference of a module's outputs in two neighbouring evaluations of the "
    "UNet, over the norm of the later one; the mean over prompts and guidance branches. Where it "
    "is small, taking the output of the step before costs little: there reuse pays.",
)


def _figures(analysis: Analysis) -> list[dict[str, str]]:
    machine = analysis.machine
    figures = [("Time of a picture", metric(analysis.seconds, "s"))]
    figures += [
        (f"One call of {each.name}", metric(each.seconds, "s"))
        for each in sorted(analysis.profiles, key=lambda each: -each.seconds * each.calls)[:2]
    ]
    figures += [
        ("Peak, measured", metric(machine.flops, "FLOP/s")),
        ("Memory, measured", metric(machine.bandwidth, "B/s")),
        ("Ridge", f"{machine.ridge:.1f} FLOP/B"),
    ]
    split = [(name, *value.partition(" ")[::2]) for name, value in figures]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in split]


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
