import json

import pytest
import yaml

from edgegen.commands.experiment import main
from edgegen.runs.finished import from_csv
from edgegen.runs.record import is_finished, read_record

TABLE = """
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import make_table

def table(rows):
    return make_table(rows, ["stage", "steps"], [], ["cost/tflops_all"]).markdown()

def figures(rows):
    points = [Point(row["cost/tflops_all"], row["steps"]) for row in rows]
    return {"plot.png": plot_front(points, "cost", "steps")}
"""


@pytest.fixture
def experiment(tiny_pipeline_folder, tmp_path):
    """All of three step counts, then the two cheapest at another batch."""
    folder = tmp_path / "mine"
    folder.mkdir()
    content = {
        "command": "flops",
        "settings": {"model": str(tiny_pipeline_folder), "guidance": True},
        "metrics": ["cost/tflops_all", "cost/total_params"],
        "objectives": ["cost/tflops_all", "cost/total_params"],
        "stages": {
            "all": {"space": {"steps": {"type": "categorical", "choices": [3, 1, 2]}}},
            "best": {"best_of": "all", "most": 1, "settings": {"batch": 2}},
        },
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "table.py").write_text(TABLE)
    return folder


def starts(output):
    return {f.name: read_record(f)["start"] for f in (output / "cells").iterdir() if is_finished(f)}


def test_from_the_grid_to_the_committed_table(experiment, tmp_path, capsys):
    output = tmp_path / "out"
    main([f"name={experiment}", f"output_dir={output}"])
    rows = from_csv((experiment / "results.csv").read_text())
    assert [(row["stage"], row["steps"]) for row in rows] == [
        ("all", 3),
        ("all", 1),
        ("all", 2),
        ("best", 1),
    ]
    one, three = rows[1]["cost/tflops_all"], rows[0]["cost/tflops_all"]
    assert three == pytest.approx(3 * one, rel=1e-5)
    table = (experiment / "table.md").read_text()
    assert "| all | 3 |" in table
    assert table in capsys.readouterr().out
    for name in ("results.csv", "table.md", "plot.png"):
        assert (experiment / name).read_bytes() == (output / name).read_bytes()
    assert (output / "report.html").stat().st_size > 10_000
    assert json.loads((output / "metrics.json").read_text()) == {"experiment/cells": 4}

    before = starts(output)
    assert set(before) == {row["cell"] for row in rows}
    (experiment / "table.md").unlink()
    main([f"name={experiment}", f"output_dir={output}"])
    assert starts(output) == before
    assert (experiment / "table.md").read_text() == table


def test_a_trial_commits_nothing(experiment, tmp_path):
    output = tmp_path / "out"
    main([f"name={experiment}", "settings={guidance: false}", "limit=2", f"output_dir={output}"])
    assert sorted(path.name for path in experiment.iterdir()) in (
        ["grid.yaml", "table.py"],
        ["__pycache__", "grid.yaml", "table.py"],
    )
    assert len(from_csv((output / "results.csv").read_text())) == 3


def test_failed_cells_are_told_and_nothing_is_committed(experiment, tmp_path, capsys):
    output = tmp_path / "out"
    grid = experiment / "grid.yaml"
    grid.write_text(grid.read_text().replace("- 2\n", "- 0\n"))
    with pytest.raises(SystemExit) as stopped:
        main([f"name={experiment}", f"output_dir={output}"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "stage all: 1 of 3 cells came to no end" in told
    assert "steps=0" in told
    assert not (experiment / "results.csv").exists()
    assert len(starts(output)) == 2
    assert read_record(output)["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name is required"),
        (["name=stepps"], "name=stepps: no such experiment; there are"),
        (["name={}", "workers=0"], "workers=0: must be a whole number"),
        (["name={}", "settings=3"], "settings=3: must be a mapping"),
        (["name={}", "settings={{stepps: 3}}"], "unknown option 'stepps'"),
    ],
)
def test_one_line_for_a_mistake(experiment, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main([each.format(experiment) for each in arguments] + [f"output_dir={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line
    assert not (tmp_path / "out").exists()
