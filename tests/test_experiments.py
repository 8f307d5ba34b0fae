"""Every table that is committed comes out of the results that are committed beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgegen.commands._cells import Cell
from edgegen.commands._compared import compared
from edgegen.runs.experiment import Experiment, table_code
from edgegen.runs.finished import from_csv, to_csv
from edgegen.runs.space import grid_points, read_axes

ROOT = Path(__file__).parents[1] / "experiments"
COMMITTED = sorted(path.parent for path in ROOT.glob("*/results.csv"))
PLANNED = sorted(path.parent for path in ROOT.glob("*/grid.yaml"))


def check(folder: Path) -> None:
    """Raises AssertionError where what is committed does not belong together."""
    text = (folder / "results.csv").read_text(encoding="utf-8")
    rows = from_csv(text)
    assert to_csv(rows) == text, f"{folder}: results.csv was not written by the experiment"
    code = table_code(folder)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert code.table(rows) == table, f"{folder}: table.md is not what table.py makes"
    cells = {row.get("cell"): row for row in rows}
    for pair in (row for row in rows if row.get("stage") == "pairs"):
        first, second = (cells[name] for name in pair["cells"].split())
        for key in (key for key in pair if key.endswith("_change") and pair[key] is not None):
            metric = key.removesuffix("_change")
            if {first[f"{metric}_n"], second[f"{metric}_n"]} == {pair[f"{key}_n"]}:
                digits = 2e-6 * max(1, abs(first[metric]), abs(second[metric]))  # six are kept
                assert first[metric] - second[metric] == pytest.approx(pair[key], abs=digits), pair
    for name in code.figures(rows):
        assert (folder / name).is_file(), f"{folder}: {name} is missing"
    for picture in folder.glob("*.png"):
        assert picture.stat().st_size < 200_000, f"{picture}: larger than 200 kB"
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_tables_come_from_committed_results(folder: Path) -> None:
    check(folder)


@pytest.mark.parametrize("folder", PLANNED, ids=lambda folder: folder.name)
def test_grids_can_be_read_and_tables_made(folder: Path, tmp_path: Path) -> None:
    """With made-up results, all the way from the grid to the table."""
    experiment = Experiment.read(folder)
    rows: list[dict] = []
    for stage in experiment.stages:
        for number, (point, settings) in enumerate(experiment.points(stage, rows)):
            assert set(settings) >= set(experiment.settings)
            numbers = {name: 1 + 1 / (2 + number) for name in experiment.metrics}
            numbers |= {f"{name}_lo": value - 0.01 for name, value in numbers.items()}
            rows.append({"stage": stage.name, **point, **numbers, "cell": f"r{number}"})
    (tmp_path / "README.md").write_text("made up")
    (tmp_path / "table.py").write_bytes((folder / "table.py").read_bytes())
    experiment.write(tmp_path, rows)
    check(tmp_path)
    table = tmp_path / "table.md"
    table.write_text(table.read_text().replace("1.5", "1.6"))
    with pytest.raises(AssertionError, match="not what"):
        check(tmp_path)


def test_the_grid_of_steps() -> None:
    """7 × 5 × 4 cells, then twelve of the fronts on 2,028 pictures, six a caption."""
    experiment = Experiment.read(ROOT / "steps")
    screen, final, _ = experiment.stages
    axes = read_axes(screen.space)
    assert [len(axis.grid()) for axis in axes] == [7, 5, 4]
    assert len(grid_points(axes)) == 140
    rows = []
    for point, settings in experiment.points(screen, []):
        assert (settings["n"], settings["seeds"], settings["split"]) == (200, [0], "dev")
        cost = point["steps"] * (1 if point["guidance"] == 1 else 2) * 0.01
        worse = (
            ["UniPCMultistep", "DDIM"].index(point["scheduler"])
            if point["scheduler"] in ("DDIM", "UniPCMultistep")
            else 2
        )
        rows.append(
            {
                "stage": "screen",
                **point,
                "cost/tflops_all": cost,
                "quality/ode_rmse": (1 + worse) / point["steps"],
            }
        )
    chosen = experiment.points(final, rows)
    assert len(chosen) == 12
    assert {point["scheduler"] for point, _ in chosen} == {"UniPCMultistep"}
    for guidance in (1, 2, 4, 7.5):
        steps = [point["steps"] for point, _ in chosen if point["guidance"] == guidance]
        assert steps == [4, 8, 16]
    assert all((s["n"], s["seeds"]) == (None, [0, 1, 2, 3, 4, 5]) for _, s in chosen)


@pytest.mark.parametrize("folder", PLANNED, ids=lambda folder: folder.name)
def test_what_is_planned_can_be_composed(folder: Path) -> None:
    """A wrong setting of a late stage would come out after hours of training.

    One cell of each kind; the methods of `compare` are a list of their own, which composing does
    not read.
    """
    experiment, rows = Experiment.read(folder), []
    for stage in experiment.stages:
        if stage.best_of is not None:
            continue
        seen = set()
        for point, settings in experiment.points(stage, rows):
            placed = experiment.placed(settings, rows, Path("cells"))
            rows.append({"stage": stage.name, **point, "cell": "r0"})
            kind = str(placed.get("experiment")), *sorted(placed)
            if kind in seen and stage.command != "compare":
                continue
            seen.add(kind)
            cell = Cell.of(stage.command, placed)
            if stage.command == "compare":
                assert compared(cell.config)
