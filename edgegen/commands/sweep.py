"""`python scripts/sweep.py study=…`: a grid, or a search over several objectives."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ..runs.finished import CELLS, INTERVAL, Finished, Row
from ..runs.identity import code_version
from ..runs.record import Run
from ..runs.samplers import ERROR, SAMPLERS
from ..runs.search import Failed, Search
from ..runs.space import Axis, Scalar, grid_points, point_settings, read_axes
from ._arguments import options
from ._cells import Cell
from ._grid import error_of, run_grid
from ._main import command
from ._numbers import flag, whole_number
from ._results import write_results
from ._workers import helped


@dataclass(frozen=True)
class Study:
    """What a study config says: a command, settings that all its runs share, and what varies."""

    command: str
    settings: dict[str, Any]
    space: dict[str, Any]
    objectives: dict[str, str]

    @classmethod
    def read(cls, cfg: DictConfig) -> Study:
        """Raises ValueError, naming the key and what is allowed."""
        given: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        if not isinstance(given.get("command"), str):
            raise ValueError("study.command: must name a command, as evaluate")
        parts = (given.get(key) or {} for key in ("settings", "space", "objectives"))
        study = cls(given["command"], *parts)
        read_axes(study.space)
        if not study.objectives:
            raise ValueError("study.objectives: name one metric or more, and which way is better")
        for name, way in study.objectives.items():
            if way not in ("minimize", "maximize"):
                raise ValueError(f"study.objectives.{name}={way}: must be minimize or maximize")
        if unknown := sorted(set(given) - set(cls.__annotations__)):
            allowed = ", ".join(cls.__annotations__)
            raise ValueError(f"study: unknown key {unknown[0]!r}; allowed: {allowed}")
        return study

    @property
    def axes(self) -> list[Axis]:
        """The axes of the space."""
        return read_axes(self.space)

    def at(self, point: Mapping[str, Scalar]) -> Cell:
        """The cell at a point of the space."""
        return Cell.of(self.command, self.settings | point_settings(self.axes, point))


@command("sweep")
def main(cfg: DictConfig, run: Run) -> None:
    """Run the cells, and write the results, a table, a plot and a report of them."""
    if cfg.get("study") is None:
        raise ValueError(
            f"study is required: give study=NAME, one of {', '.join(options('study'))}"
        )
    study = Study.read(cfg.study)
    for key in ("n_trials", "workers", "heartbeat"):
        whole_number(cfg, key, 1)
    whole_number(cfg, "seed", 0)
    flag(cfg, "mix")
    if cfg.sampler not in ("grid", *SAMPLERS):
        raise ValueError(f"sampler={cfg.sampler}: must be one of grid, {', '.join(SAMPLERS)}")
    # A mistake in the settings is found before anything is written.
    study.at({axis.name: axis.first() for axis in study.axes})
    rows = _grid(cfg, study, run) if cfg.sampler == "grid" else _search(cfg, study, run)
    errors = [row["error"] for row in rows if row["error"]]
    run.log({"sweep/trials": len(rows), "sweep/failed": len(errors)})
    if len(errors) == len(rows):
        raise ValueError(f"none of the {len(rows)} runs came to its end; the last: {errors[-1]}")
    axes = [axis.name for axis in study.axes]
    write_results(run.dir, rows, axes, study.objectives, title=f"Sweep of {study.command}")
    print(f"{len(rows)} runs, {len(errors)} of them failed; see {run.dir / 'report.html'}")


def _grid(cfg: DictConfig, study: Study, run: Run) -> list[Row]:
    points = grid_points(study.axes)
    cells = [study.at(point) for point in points]
    root = run.dir / CELLS
    run_grid(cells, root, "sweep", cfg.workers)
    return [
        _row(study, point, cell.id, root, error_of(root / cell.id))
        for point, cell in zip(points, cells, strict=True)
    ]


def _search(cfg: DictConfig, study: Study, run: Run) -> list[Row]:
    storage = cfg.storage or f"sqlite:///{run.folder.absolute() / 'study.db'}"
    shared = {"study": asdict(study), "sampler": cfg.sampler, "seed": cfg.seed}
    if not cfg.mix:
        shared["code"] = code_version()
    if cfg.storage is not None:  # one that cannot be opened leaves nothing behind
        _opened(study, storage, shared, cfg.heartbeat)
    root = run.dir / CELLS
    job = (study, storage, shared, cfg.heartbeat, cfg.n_trials, root)
    with (
        helped(cfg.workers - 1, _work, *job),
        tqdm(total=cfg.n_trials, desc="sweep", unit="trial") as bar,
    ):
        search = _work(*job, bar=bar)
    return [
        _row(
            study,
            trial.params,
            trial.user_attrs["cell"],
            root,
            trial.user_attrs.get(ERROR),
            trial.values,
        )
        for trial in search.trials()
    ]


def _opened(study: Study, storage: str, shared: Mapping[str, Any], heartbeat: int) -> Search:
    return Search(
        storage,
        f"{study.command}-{shared['sampler']}",
        study.axes,
        study.objectives,
        sampler=shared["sampler"],
        seed=shared["seed"],
        settings=shared,
        folder=_locks(storage),
        heartbeat=heartbeat,
    )


def _work(
    study: Study,
    storage: str,
    shared: Mapping[str, Any],
    heartbeat: int,
    n: int,
    root: Path,
    bar: tqdm | None = None,
) -> Search:
    search = _opened(study, storage, shared, heartbeat)

    def score(point: dict[str, Scalar], remark: Callable[[str, Any], None]) -> Sequence[float]:
        cell = study.at(point)
        remark("cell", cell.id)
        try:
            folder = cell.run(root)
        except Exception as error:
            tqdm.write(f"cell {cell.id}: {type(error).__name__}: {error}", file=sys.stderr)
            raise Failed(" ".join(f"{type(error).__name__}: {error}".split())) from error
        assert folder is not None  # it was waited for
        metrics = Finished.read(folder).metrics
        if missing := [name for name in study.objectives if metrics.get(name) is None]:
            raise Failed(f"{missing[0]}: not in metrics.json, or null there")
        return [float(metrics[name] or 0) for name in study.objectives]

    def progress(done: int) -> None:
        if bar is not None:
            bar.update(done - bar.n)

    search.run(n, score, progress)
    return search


def _locks(storage: str) -> Path:
    """One folder for all sweeps of this user on this machine that share a storage."""
    name = hashlib.sha256(storage.encode()).hexdigest()[:16]
    user = os.getuid() if hasattr(os, "getuid") else "all"
    return Path(tempfile.gettempdir()) / f"edgegen-{user}-{name}"


def _row(
    study: Study,
    point: Mapping[str, Scalar],
    cell: str,
    root: Path,
    error: str | None,
    values: Sequence[float] | None = None,
) -> Row:
    """A row of the results; `values` are the objectives of a cell that another sweep ran."""
    metrics: Mapping[str, Any] = {}
    if not error and (root / cell).is_dir():
        metrics = Finished.read(root / cell).metrics
    elif not error and values is not None:
        metrics = dict(zip(study.objectives, values, strict=True))
    numbers = {
        name: metrics.get(name)
        for objective in study.objectives
        for name in (objective, *(objective + end for end in INTERVAL))
        if name == objective or name in metrics
    }
    return {"cell": cell, **point, **numbers, "error": error}
