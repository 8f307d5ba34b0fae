"""The report of several runs, or of one: a sortable table, plots, pictures, videos, the records."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .atomic import write_atomic
from .finished import plain
from .page import ReportPicture, inlined, record_values, render
from .record import read_record
from .tables import Score, best_of, direction, number_text, score_text, short

_ENDS = ("_lo", "_hi", "_n", "_sd", "_q25", "_q75", "_iqr", "_p95")
_MOST_COLUMNS = 14
_FIRST = ("quality/ode_rmse", "quality/ode_efflite0", "cost/tflops_all", "cost/seconds_per_image")
_PICTURES, _VIDEOS = ("*.png", "*.jpg", "*.webp"), ("*.mp4", "*.webm")
_LARGEST = {"picture": 2_000_000, "video": 4_000_000}  # bytes a file
_LARGEST_PAGE = 40_000_000  # bytes of files in all


@dataclass(frozen=True)
class Shown:
    """A run as a report shows it, finished or not.

    `named` holds the values of the axes that name it in a grid: they stand in place of the settings
    that the runs differ in.
    """

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    named: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, named: Mapping[str, Any] | None = None) -> Shown:
        """What there is of the run; a file that cannot be read counts as empty."""
        return cls(
            folder,
            read_record(folder),
            _read(folder / "config.yaml", yaml.safe_load),
            _read(folder / "metrics.json", json.loads),
            named or {},
        )

    @property
    def finished(self) -> bool:
        """Whether the run came to its end. Metrics of others are not shown."""
        return self.record.get("status") == "finished"


@dataclass
class _Files:
    """Files written into the page, until they are too many."""

    left_out: list[str] = field(default_factory=list)
    size: int = 0

    def fits(self, file: Path, kind: str) -> bool:
        size = file.stat().st_size
        fits = size <= _LARGEST[kind] and self.size + size <= _LARGEST_PAGE
        if fits:
            self.size += size
        else:
            self.left_out.append(f"{file.parent.name}/{file.name}")
        return fits


def write_collection_report(
    path: str | Path,
    runs: Sequence[Shown],
    *,
    title: str,
    lead: str,
    settings: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    plots: Sequence[tuple[str, bytes]] = (),
    notes: Iterable[str] = (),
) -> Path:
    """Write one HTML file with everything inside; it loads nothing and needs no network.

    Args:
        runs: in the order of the table.
        title, lead: the heading, and the sentence or two under it.
        settings: dotted keys of the settings to show; None for what names the runs, or else those
            in which they differ.
        metrics: to show; None for a choice of those there are, the paired error and the cost first.
            All of them are in the records below.
        plots: (caption, PNG).
        notes: remarks under the table.

    Pictures and videos are the files of these kinds directly in the runs' folders. Raises
    ValueError where there is no run.
    """
    if not runs:
        raise ValueError("no runs to report")
    axes = list(dict.fromkeys(key for run in runs for key in run.named))
    keys = list(settings) if settings is not None else axes or differing(runs)
    names = _main_metrics(runs) if metrics is None else list(metrics)
    files = _Files()
    pictures = [
        inlined(ReportPicture(file, f"{run.folder.name}: {file.name}"))
        for run in runs
        for file in _files(run.folder, _PICTURES)
        if files.fits(file, "picture")
    ]
    videos = [
        {
            "source": _data_url(file.read_bytes(), file.name),
            "caption": f"{run.folder.name}: {file.name}",
        }
        for run in runs
        for file in _files(run.folder, _VIDEOS)
        if files.fits(file, "video")
    ]
    best = _best(runs, names)
    shown = [_row(number, run, keys, names, best) for number, run in enumerate(runs)]
    text = render(
        "collection_report.html",
        ("sortable.css", "collection_report.css"),
        title=title,
        lead=lead,
        heads=[
            {"text": text, "word": place and all(row[place]["kind"] == "word" for row in shown)}
            for place, text in enumerate(["run", *map(short, keys), *names])
        ],
        rows=shown,
        notes=[*_notes(runs, names, best), *notes],
        plots=[{"source": _data_url(png, "x.png"), "caption": text} for text, png in plots],
        pictures=pictures,
        videos=videos,
        left_out=", ".join(files.left_out[:20]) + (" …" if len(files.left_out) > 20 else ""),
        runs=[_details(run) for run in runs],
    )
    return write_atomic(path, text)


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """A nested mapping as dotted key → value; lists stay whole."""
    if not isinstance(node, Mapping) or not node:
        return {path: node} if path else {}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def differing(runs: Sequence[Shown]) -> list[str]:
    """Dotted keys of the settings in which the runs differ, but for where they are kept.

    What only tells Hydra how to build a part, as `method.clockwork._target_`, is left out.
    """
    settings = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    skipped = ("output_dir", "cache")
    return [
        key
        for key in keys
        if key not in skipped
        and not key.rpartition(".")[2].startswith("_")
        and len({repr(each.get(key)) for each in settings}) > 1
    ]


def _main_metrics(runs: Sequence[Shown]) -> list[str]:
    finished = [run for run in runs if run.finished]
    known = {name for run in finished for name, value in run.metrics.items() if value is not None}
    ends = {name + end for name in known for end in _ENDS}
    groups = {"quality": 0, "video": 1, "cost": 2}

    def group(name: str) -> int:
        return groups.get(name.partition("/")[0], 3)

    def rank(name: str) -> tuple[Any, ...]:
        part = any(name.startswith(f"{whole}_") for whole in known)  # of another, as by style
        return _FIRST.index(name) if name in _FIRST else len(_FIRST), part, group(name), name

    found = sorted(known - ends, key=rank)
    if len(found) > _MOST_COLUMNS:  # those that tell the runs apart
        found = [n for n in found if len({run.metrics.get(n) for run in finished}) > 1] or found
    return sorted(found[:_MOST_COLUMNS], key=group)


def _score(run: Shown, name: str) -> Score | None:
    value = run.metrics.get(name) if run.finished else None
    if value is None:
        return None
    low, high = (run.metrics.get(name + end) for end in ("_lo", "_hi"))
    return Score(value, value if low is None else low, value if high is None else high)


def _best(runs: Sequence[Shown], names: Sequence[str]) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for name in names:
        scores = {(i, name): score for i, run in enumerate(runs) if (score := _score(run, name))}
        if way := direction(name):
            found |= best_of(scores, way)
    return found


def _row(
    number: int, run: Shown, keys: list[str], names: list[str], best: set[tuple[int, str]]
) -> list[dict[str, Any]]:
    settings = {**flat(run.config), **run.named}
    cells = [{"text": run.folder.name, "value": run.folder.name, "kind": "word"}]
    for key in keys:
        value = plain(settings.get(key))
        real = isinstance(value, int | float) and not isinstance(value, bool)
        text = "" if value is None else number_text(value) if real else str(value)
        cells.append(
            {"text": text, "value": str(value) if real else text, "kind": "" if real else "word"}
        )
    for name in names:
        score = _score(run, name)
        text = (
            score_text(score) if score else run.record.get("status", "") if not run.finished else ""
        )
        kind = "best" if (number, name) in best else ""
        cells.append({"text": text, "value": repr(score.value) if score else "", "kind": kind})
    return cells


def _notes(runs: Sequence[Shown], names: Sequence[str], best: set[tuple[int, str]]) -> list[str]:
    notes = []
    if best:
        notes.append("Bold: the best of a column, and all whose interval overlaps the best one's.")
    if any((score := _score(run, name)) and not score.exact for run in runs for name in names):
        notes.append("In brackets: 95 % intervals.")
    versions = {run.record.get("code") or str(run.record.get("git")) for run in runs}
    if len(versions) > 1:
        notes.append(f"Made by {len(versions)} versions of the code: see the records.")
    if unfinished := sum(not run.finished for run in runs):
        notes.append(f"Not finished, and so without figures: {unfinished} of {len(runs)} runs.")
    return notes


def _details(run: Shown) -> dict[str, Any]:
    about = record_values(run.record)
    error = [("Error", run.record["error"])] if "error" in run.record else []
    nulls = [(name, f"null: {why}") for name, why in run.record.get("null_metrics", {}).items()]
    numbers = [(n, number_text(v)) for n, v in run.metrics.items() if v is not None]
    parts = [
        ("Run", [("Folder", str(run.folder)), *about["record"], *error]),
        ("Metrics", [*numbers, *nulls]),
        ("Settings", [(key, str(plain(value))) for key, value in flat(run.config).items()]),
        *about["details"],
    ]
    return {
        "name": run.folder.name,
        "state": run.record.get("status", "no record"),
        "failed": not run.finished,
        "parts": [{"name": name, "rows": rows} for name, rows in parts if rows],
    }


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def _data_url(data: bytes, name: str) -> str:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _read(path: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
