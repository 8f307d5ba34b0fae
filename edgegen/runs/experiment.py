"""An experiment's folder: the grid in stages, the code of its table, the results it committed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from .atomic import write_atomic
from .finished import Row, from_csv, to_csv
from .pareto import spread_front, write_figure
from .space import grid_points, point_settings, read_axes

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
_KEYS = {"command", "settings", "metrics", "objectives", "stages"}
_STAGE_KEYS = {"command", "settings", "space", "best_of", "where", "within", "most"}
_MADE = re.compile(r"\{(\w+): ([^{}]+)\}")


@dataclass(frozen=True)
class Stage:
    """A part of an experiment: its own grid, or the best points of an earlier stage.

    Args:
        name: of the stage.
        command: what its cells run, where it is another one than the experiment's.
        settings: what all its cells share beyond the experiment's own settings.
        space: the grid, as `read_axes` takes it; empty for the points of stage `best_of`.
        best_of: the earlier stage, of whose front by the objectives it takes points.
        where: values of axes that points are taken from; of axes not named, all.
        within: axes; each combination of their values has a front of its own.
        most: points to take.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    space: Mapping[str, Any]
    best_of: str | None
    where: Mapping[str, Sequence[Any]]
    within: Sequence[str]
    most: int


@dataclass(frozen=True)
class Experiment:
    """What `grid.yaml` in an experiment's folder says."""

    folder: Path
    command: str
    settings: Mapping[str, Any]
    metrics: Sequence[str]
    objectives: Sequence[str]
    stages: Sequence[Stage]

    @classmethod
    def read(cls, folder: str | Path) -> Experiment:
        """Raises FileNotFoundError or ValueError, naming the file and the key."""
        folder = Path(folder)
        path = folder / "grid.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"no experiment there: {path} is missing")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
        _check_keys(path, given, _KEYS)
        stages: list[Stage] = []
        for name, stage in given["stages"].items():
            _check_keys(f"{path}: stages.{name}", stage, _STAGE_KEYS, needed=())
            best_of = stage.get("best_of")
            if (best_of is None) == ("space" not in stage):
                raise ValueError(f"{path}: stages.{name}: give either space or best_of")
            if best_of is not None and best_of not in [earlier.name for earlier in stages]:
                raise ValueError(f"{path}: stages.{name}.best_of={best_of}: no earlier stage")
            where = stage.get("where", {})
            space = next((each.space for each in stages if each.name == best_of), {})
            _check_keys(f"{path}: stages.{name}.where", where, set(space), needed=())
            stages.append(
                Stage(
                    name,
                    stage.get("command", given["command"]),
                    stage.get("settings", {}),
                    stage.get("space", {}),
                    best_of,
                    where,
                    stage.get("within", []),
                    stage.get("most", 12),
                )
            )
        if len(given["objectives"]) != 2:
            raise ValueError(f"{path}: objectives: name two metrics of which less is better")
        rest = {key: given[key] for key in ("command", "settings", "metrics", "objectives")}
        return cls(folder, **rest, stages=stages)

    def points(self, stage: Stage, results: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
        """The cells of a stage: the values that name each, and its settings.

        Args:
            results: rows of the earlier stages.
        """
        origin = next((each for each in self.stages if each.name == stage.best_of), stage)
        axes = read_axes(origin.space)
        points = grid_points(axes)
        if origin is not stage:
            rows = [row for row in results if row["stage"] == origin.name]
            rows = [row for row in rows if all(row[a] in v for a, v in stage.where.items())]
            if lacking := [n for n in self.objectives if any(row.get(n) is None for row in rows)]:
                raise ValueError(f"stage {origin.name}: {lacking[0]}: not in the metrics of a cell")
            values = np.array([[row[name] for name in self.objectives] for row in rows], float)
            groups = [tuple(row[axis] for axis in stage.within) for row in rows]
            best = spread_front(values, groups, stage.most)
            points = [{a.name: row[a.name] for a in axes} for row in np.array(rows)[best]]
        shared = {**self.settings, **stage.settings}
        return [(point, shared | point_settings(axes, point)) for point in points]

    def placed(self, settings: Any, results: Sequence[Row], cells: Path) -> Any:
        """`settings` with the folders of earlier cells put in for what names them.

        `{STAGE: POINT}` in a text is the folder of a cell: of the stage, at the point whose values
        are joined by commas, as in `{adaptors: resnet, 0}/model/adaptor.safetensors`.

        Args:
            results: rows of the earlier stages.
            cells: where the folders of cells lie.

        Raises ValueError for a cell that there is not.
        """
        if isinstance(settings, Mapping):
            return {key: self.placed(each, results, cells) for key, each in settings.items()}
        if isinstance(settings, list):
            return [self.placed(each, results, cells) for each in settings]
        if not isinstance(settings, str):
            return settings

        def folder(found: re.Match[str]) -> str:
            known = self._named(found[1], results)
            if found[2] not in known:
                there = "; ".join(known) or "none"
                raise ValueError(f"{found[0]}: no such cell of an earlier stage; there are {there}")
            return str(cells / known[found[2]])

        return _MADE.sub(folder, settings)

    def _named(self, stage: str, results: Sequence[Row]) -> dict[str, str]:
        """The cells of a stage by the values that name them."""
        found = next((each for each in self.stages if each.name == stage), None)
        while found is not None and found.best_of is not None:
            found = next(each for each in self.stages if each.name == found.best_of)
        axes = [] if found is None else list(found.space)
        rows = [row for row in results if row["stage"] == stage]
        return {", ".join(str(row[axis]) for axis in axes): row["cell"] for row in rows}

    def write(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        """Write `results.csv`, and what the experiment makes of it: `table.md` and figures."""
        text = to_csv(rows)
        code, results = table_code(self.folder), from_csv(text)
        return [
            write_atomic(folder / "results.csv", text),
            write_atomic(folder / "table.md", code.table(results)),
            *(write_figure(folder / n, figure) for n, figure in code.figures(results).items()),
        ]


def experiment_folder(name: str) -> Path:
    """The folder of an experiment of this project by name, or the folder that `name` is.

    Raises FileNotFoundError, naming those there are.
    """
    for folder in (EXPERIMENTS / name, Path(name).expanduser()):
        if (folder / "grid.yaml").is_file():
            return folder
    known = sorted(path.parent.name for path in EXPERIMENTS.glob("*/grid.yaml"))
    raise FileNotFoundError(
        f"name={name}: no such experiment; there are {', '.join(known) or 'none'}, or give a "
        "folder with grid.yaml"
    )


def table_code(folder: Path) -> ModuleType:
    """The experiment's `table.py`: `table(rows) -> str`, `figures(rows) -> {name.png: Figure}`.

    It may also have `derived(rows, cells) -> rows`, for what takes the samples of several cells: it
    gives the rows with more columns, or more rows, from the folders of the cells under `cells`.
    """
    path = folder / "table.py"
    if not path.is_file():
        raise FileNotFoundError(f"the experiment has no {path}")
    spec = importlib.util.spec_from_file_location(f"experiment_{folder.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_keys(where: object, given: Any, allowed: set[str], needed: Any = None) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: must be a mapping")
    if unknown := sorted(set(given) - allowed):
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}"
        )
    if missing := sorted((allowed if needed is None else set(needed)) - set(given)):
        raise ValueError(f"{where}: {missing[0]} is missing")
