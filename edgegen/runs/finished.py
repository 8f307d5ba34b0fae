"""Finished runs as rows of results: found on disk, checked to be of one code, read."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .record import is_finished, read_record

CELLS = "cells"
INTERVAL = ("_lo", "_hi", "_n")
_DIGITS = 6  # significant ones, in results.csv
Row = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A run that came to its end: its record, settings and metrics."""

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, float | None]

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Raises ValueError where the run is not finished or its files cannot be read."""
        if not is_finished(folder):
            status = read_record(folder).get("status", "no run")
            raise ValueError(f"{folder}: not a finished run (status: {status})")
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{folder}: its record cannot be read ({error})") from error
        return cls(folder, read_record(folder), config, metrics)

    def value(self, key: str) -> Any:
        """What stands under `key`, or None where nothing does.

        `name` is the folder's name, `group/metric` a metric, `config.a.b` a setting as given,
        `settings.a` one as used (as given, where the run keeps no others), and any other dotted
        key an entry of `run.json`.
        """
        if key == "name":
            return self.folder.name
        if "/" in key:
            return self.metrics.get(key)
        head, _, rest = key.partition(".")
        if head == "config":
            return _dig(self.config, rest)
        found = _dig(self.record, key)
        return _dig(self.config, rest) if found is None and head == "settings" else found


def run_folders(patterns: str | Iterable[str]) -> list[Path]:
    """Folders of runs, finished or not, that glob patterns name, without repeats.

    A folder with `run.json` is a run; one with a folder `cells` (a sweep or an experiment) stands
    for the runs in there; in any other, runs are looked for at every depth.

    Raises FileNotFoundError where a pattern names no run.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        here: list[Path] = []
        for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True)):
            here += _runs_in(Path(name))
        if not here:
            raise FileNotFoundError(f"runs={pattern}: no run (a folder with run.json) there")
        found |= dict.fromkeys(here)
    return list(found)


def finished_runs(folders: Iterable[Path], *, mix: bool = False) -> list[Finished]:
    """Those of the runs that are finished.

    Raises ValueError where none is, or where they were made by different code and not `mix`.
    """
    folders = list(folders)
    runs = [Finished.read(folder) for folder in folders if is_finished(folder)]
    if not runs:
        raise ValueError(f"none of the {len(folders)} runs is finished")
    if not mix:
        check_one_code(runs)
    return runs


def check_one_code(runs: Sequence[Finished]) -> None:
    """Raises ValueError, naming two runs, where results were made by different code.

    Code is told apart by its own hash where every run has one, else by commit and changes.
    """
    own = all("code" in run.record for run in runs)
    first: dict[str, Finished] = {}
    for run in runs:
        first.setdefault(_version(run.record, own), run)
    if len(first) > 1:
        (version, run), (other_version, other) = list(first.items())[:2]
        raise ValueError(
            f"the runs were made by {len(first)} versions of the code: {run.folder} by {version}, "
            f"{other.folder} by {other_version}; give mix=true to take them all the same"
        )


def results(runs: Sequence[Finished], keys: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """A row a run: the values of `keys`, then each metric, and its interval where it has one.

    Lists and mappings among the values become JSON text. Raises ValueError for a key or metric
    that no run has.
    """
    for name in [*keys, *metrics]:
        if all(_absent(run, name) for run in runs):
            raise ValueError(f"{name}: in none of the {len(runs)} runs{_known(runs[0], name)}")
    ends = [
        name
        for metric in metrics
        for name in [metric, *(metric + end for end in INTERVAL)]
        if name == metric or any(name in run.metrics for run in runs)
    ]
    return [
        {key: plain(run.value(key)) for key in keys}
        | {name: run.metrics.get(name) for name in ends}
        for run in runs
    ]


def plain(value: Any) -> Any:
    """`value`, or its JSON text where a CSV cell cannot hold it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header of all their keys; real numbers to six significant digits."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([[_cell(row.get(head)) for head in heads] for row in rows])
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows of `to_csv`: numbers as numbers, empty cells as None."""
    return [
        {key: _read(cell) for key, cell in row.items()} for row in csv.DictReader(text.splitlines())
    ]


def _runs_in(folder: Path) -> list[Path]:
    if (folder / CELLS).is_dir():
        folder = folder / CELLS
    elif (folder / "run.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.rglob("run.json")) if folder.is_dir() else []


def _dig(node: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _absent(run: Finished, name: str) -> bool:
    return name not in run.metrics if "/" in name else run.value(name) is None


def _known(run: Finished, name: str) -> str:
    if "/" in name:
        return f"; there are {', '.join(sorted(run.metrics)) or 'no metrics'}"
    head = name.partition(".")[0]
    inside = {"config": run.config, "settings": run.record.get("settings") or run.config}.get(head)
    names = [f"{head}.{key}" for key in inside] if inside is not None else ["name", *run.record]
    return f"; there are {', '.join(names)}"


def _version(record: Mapping[str, Any], own: bool) -> str:
    if own:
        return f"code {record['code']}"
    git = record.get("git") or {}
    if not git.get("sha"):
        return f"edgegen {record.get('versions', {}).get('edgegen', 'of unknown version')}"
    changes = f" with changes {git.get('diff_sha256', '')[:12]}" if git.get("dirty") else ""
    return f"commit {git['sha'][:12]}{changes}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}" if math.isfinite(value) else ""
    return str(value)


def _read(cell: str) -> Any:
    if cell == "":
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
