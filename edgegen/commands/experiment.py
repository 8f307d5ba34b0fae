"""`python scripts/experiment.py name=steps`: the cells, the table and the plot of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..runs.collection_report import Shown, write_collection_report
from ..runs.experiment import Experiment, Stage, experiment_folder, table_code
from ..runs.finished import CELLS, Finished, Row, from_csv, results, to_csv
from ..runs.pareto import picture_bytes
from ..runs.record import Run, is_finished
from ._cells import Cell
from ._generation import whole_number
from ._grid import error_of, run_grid
from ._main import command


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
    rows: list[Row] = []
    for stage in found.stages:
        rows += _stage(found, stage, rows, changes, cfg, run)
    files = found.write(run.dir, rows)
    if not changes and cfg.limit is None:
        files = found.write(found.folder, rows)
    run.log({"experiment/cells": len(rows)})
    _report(found, from_csv(to_csv(rows)), run.dir)
    print(files[1].read_text(encoding="utf-8"), end="")
    print(f"in {files[0].parent}; the cells and report.html in {run.dir}")


def _stage(
    found: Experiment,
    stage: Stage,
    before: list[Row],
    changes: dict[str, Any],
    cfg: DictConfig,
    run: Run,
) -> list[Row]:
    points = found.points(stage, before)[: cfg.limit]
    settings = [each | changes for _, each in points]
    Cell.of(found.command, settings[0])  # a mistake is found before anything is written
    root = run.dir / CELLS
    cells = run_grid(found.command, settings, root, stage.name, cfg.workers)
    failed = [cell for cell in cells if not is_finished(root / cell.id)]
    if failed:
        raise ValueError(
            f"stage {stage.name}: {len(failed)} of {len(cells)} cells came to no end, such as "
            f"{root / failed[0].id}: {error_of(root / failed[0].id)}; run again to go on"
        )
    runs = [Finished.read(root / Cell.of(found.command, each).id) for each in settings]
    metrics = [name for name in found.metrics if any(name in each.metrics for each in runs)]
    measured = results(runs, [], metrics)
    return [
        {"stage": stage.name, **point, **numbers, "cell": each.folder.name, "code": _code(each)}
        for (point, _), numbers, each in zip(points, measured, runs, strict=True)
    ]


def _code(run: Finished) -> str:
    return f"c{run.record['code']}"  # the letter keeps it from being read as a number


def _report(found: Experiment, rows: list[Row], folder: Path) -> None:
    figures = table_code(found.folder).figures(rows)
    write_collection_report(
        folder / "report.html",
        [Shown.read(folder / CELLS / row["cell"]) for row in rows],
        title=f"Experiment {found.folder.name}",
        lead=f"{len(rows)} runs of {found.command}. What they show is in {found.folder}.",
        metrics=list(found.metrics),
        plots=[(name, picture_bytes(figure)) for name, figure in figures.items()],
    )
