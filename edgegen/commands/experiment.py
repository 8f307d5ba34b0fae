"""`python scripts/experiment.py name=steps`: the cells, the table and the plot of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..runs.collection_report import Shown, write_collection_report
from ..runs.experiment import Experiment, Stage, experiment_folder, table_code
from ..runs.finished import CELLS, Finished, Row, from_csv, results, to_csv
from ..runs.pareto import picture_bytes
from ..runs.record import Run, is_finished
from ..runs.space import read_axes
from ._cells import Cell
from ._grid import error_of, run_grid
from ._main import command
from ._numbers import whole_number


@command("experiment")
def main(cfg: DictConfig, run: Run) -> None:
    """Run the stages one after the other; then write what the experiment commits."""
    whole_number(cfg, "workers", 1)
    if cfg.limit is not None:
        whole_number(cfg, "limit", 1)
    if cfg.settings is not None and not isinstance(cfg.settings, DictConfig):
        raise ValueError(f"settings={cfg.settings}: must be a mapping, as in settings={{n: 10}}")
    changes: Any = {} if cfg.settings is None else OmegaConf.to_container(cfg.settings)
    found = Experiment.read(experiment_folder(cfg.name))
    table_code(found.folder)
    chosen, kept = _chosen(cfg, found), _kept(found)
    wanted = _wanted(cfg, [stage for stage in found.stages if stage.name in chosen])
    rows: list[Row] = []
    for stage in found.stages:
        if stage.name in chosen:
            own = _changes(found, stage, changes)
            rows += _stage(found, stage, rows, _of(stage, kept), wanted, own, cfg, run)
        else:
            rows += _of(stage, kept)
    if cfg.stages is not None:  # what `derived` made of cells that may not be here
        declared = {stage.name for stage in found.stages}
        rows += [row for row in kept if row["stage"] not in declared]
    rows = getattr(table_code(found.folder), "derived", _as_they_are)(rows, run.dir / CELLS)
    files = found.write(run.dir, rows)
    if not changes and cfg.limit is None:
        files = found.write(found.folder, rows)
    run.log({"experiment/cells": len(rows)})
    _report(found, from_csv(to_csv(rows)), run.dir)
    print(files[1].read_text(encoding="utf-8"), end="")
    print(f"in {files[0].parent}; the cells and report.html in {run.dir}")


def _chosen(cfg: DictConfig, found: Experiment) -> list[str]:
    """The stages to run."""
    names = [stage.name for stage in found.stages]
    if cfg.stages is None:
        return names
    given = list(cfg.stages) if isinstance(cfg.stages, ListConfig) else [cfg.stages]
    if not given or not set(given) <= set(names):
        raise ValueError(f"stages={cfg.stages}: must be some of {', '.join(names)}")
    return given


def _wanted(cfg: DictConfig, stages: list[Stage]) -> dict[str, set[Any]]:
    """Axis → the values at which to run; empty for all."""
    if cfg.points is None:
        return {}
    if not isinstance(cfg.points, DictConfig) or not cfg.points:
        raise ValueError(f"points={cfg.points}: must be a mapping, as in points={{steps: [4, 8]}}")
    if cfg.settings is not None:
        raise ValueError("points: cannot be given with settings, whose rows are not kept")
    if best := [stage.name for stage in stages if stage.best_of is not None]:
        raise ValueError(
            f"points: stage {best[0]} takes the best of a whole stage; name others by stages=[…]"
        )
    there: dict[str, list[Any]] = {}
    for axis in (axis for stage in stages for axis in read_axes(stage.space)):
        there.setdefault(axis.name, []).extend(axis.grid())
    wanted = {}
    for name, given in ((str(key), value) for key, value in cfg.points.items()):
        values = list(given) if isinstance(given, ListConfig) else [given]
        if name not in there:
            raise ValueError(f"points.{name}: no such axis; there are {', '.join(there)}")
        known = {_value(each) for each in there[name]}
        if unknown := [each for each in values if _value(each) not in known]:
            allowed = ", ".join(str(each) for each in dict.fromkeys(there[name]))
            raise ValueError(f"points.{name}={unknown[0]}: must be of {allowed}")
        if not values:
            raise ValueError(f"points.{name}=[]: name at least one value")
        wanted[name] = {_value(each) for each in values}
    return wanted


def _of(stage: Stage, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["stage"] == stage.name]


def _kept(found: Experiment) -> list[Row]:
    """What was written beside the grid before."""
    file = found.folder / "results.csv"
    return from_csv(file.read_text(encoding="utf-8")) if file.is_file() else []


def _changes(found: Experiment, stage: Stage, changes: dict[str, Any]) -> dict[str, Any]:
    """Those for all stages, and those under the stage's own name."""
    names = [each.name for each in found.stages if isinstance(changes.get(each.name), dict)]
    shared = {key: value for key, value in changes.items() if key not in names}
    return shared | (changes[stage.name] if stage.name in names else {})


def _as_they_are(rows: list[Row], cells: Path) -> list[Row]:
    return rows


def _stage(
    found: Experiment,
    stage: Stage,
    before: list[Row],
    kept: list[Row],
    wanted: dict[str, set[Any]],
    changes: dict[str, Any],
    cfg: DictConfig,
    run: Run,
) -> list[Row]:
    everything = found.points(stage, before)
    points = [each for each in everything if _matches(each[0], wanted)][: cfg.limit]
    root = run.folder / CELLS
    settings = [found.placed(each | changes, before, root) for _, each in points]
    # A mistake is found before anything is written.
    named = [Cell.of(stage.command, each) for each in settings]
    run.start()
    cells = run_grid(named, root, stage.name, cfg.workers)
    failed = [cell for cell in cells if not is_finished(root / cell.id)]
    if failed:
        raise ValueError(
            f"stage {stage.name}: {len(failed)} of {len(cells)} cells came to no end, such as "
            f"{root / failed[0].id}: {error_of(root / failed[0].id)}; run again to go on"
        )
    runs = [Finished.read(root / cell.id) for cell in named]
    metrics = [name for name in found.metrics if any(name in each.metrics for each in runs)]
    measured = results(runs, [], metrics)
    made = [
        {"stage": stage.name, **point, **numbers, "cell": each.folder.name, "code": _code(each)}
        for (point, _), numbers, each in zip(points, measured, runs, strict=True)
    ]
    if not wanted:
        return made
    known = {_place(point, row): row for point, _ in everything for row in [*kept, *made]}
    places = [_place(point, point) for point, _ in everything]
    return [known[place] for place in places if place in known]


def _matches(point: Row, wanted: dict[str, set[Any]]) -> bool:
    return all(_value(point[axis]) in values for axis, values in wanted.items() if axis in point)


def _place(point: Row, row: Row) -> tuple[Any, ...]:
    return tuple(_value(row.get(axis)) for axis in point)


def _value(value: Any) -> Any:
    """A value as a CSV gives it back."""
    return from_csv(to_csv([{"value": value, "rest": 1}]))[0]["value"]


def _code(run: Finished) -> str:
    return f"c{run.record['code']}"  # the letter keeps it from being read as a number


def _report(found: Experiment, rows: list[Row], folder: Path) -> None:
    figures = table_code(found.folder).figures(rows)
    named: dict[str, Row] = {}
    for row in rows:
        if row.get("cell") is not None:
            named.setdefault(row["cell"], _axes(row))
    # Rows of other stages may be of cells that ran elsewhere.
    cells = [cell for cell in named if is_finished(folder / CELLS / cell)]
    write_collection_report(
        folder / "report.html",
        [Shown.read(folder / CELLS / cell, named[cell]) for cell in cells],
        title=f"Experiment {found.folder.name}",
        lead=f"{len(cells)} runs. What they show is in {found.folder}.",
        metrics=list(found.metrics),
        plots=[(name, picture_bytes(figure)) for name, figure in figures.items()],
    )


def _axes(row: Row) -> Row:
    """What names a row: its stage, and the values of the axes."""
    rest = ("cell", "code")
    return {k: v for k, v in row.items() if "/" not in k and k not in rest and v is not None}
