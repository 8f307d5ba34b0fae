"""Stages of different commands, one on what another made; some of them run again alone."""

import json
import shutil

import pytest
import yaml

from edgegen.commands._cells import Cell
from edgegen.commands.experiment import main
from edgegen.runs.experiment import Experiment
from edgegen.runs.finished import Finished, from_csv
from edgegen.runs.record import read_record

TABLE = """
from edgegen.runs.tables import make_table

def table(rows):
    return make_table(rows, ["stage", "steps", "pair"], [], ["cost/tflops_all"]).markdown()

def figures(rows):
    return {}

def derived(rows, cells):
    assert all((cells / row["cell"] / "run.json").is_file() for row in rows if row.get("cell"))
    kept = [row["steps"] for row in rows if row["stage"] == "more"]
    rows = [row for row in rows if row["stage"] != "more"]
    return rows + [{"stage": "more", "steps": (kept or [len(rows)])[0], "cost/tflops_all": 1.5}]
"""


@pytest.fixture
def experiment(tiny_pipeline_folder, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan ox\n")
    model = {"model": str(tiny_pipeline_folder)}
    content = {
        "command": "flops",
        "settings": {},
        "metrics": ["cost/tflops_all", "quality/psnr_db"],
        "objectives": ["cost/tflops_all", "cost/total_params"],
        "stages": {
            "cost": {
                "settings": model,
                "space": {"steps": {"type": "categorical", "choices": [1, 2]}},
            },
            "made": {
                "command": "generate",
                "settings": model | {"prompts_file": str(prompts), "batch_size": 2},
                "space": {"steps": {"type": "categorical", "choices": [1, 2]}},
            },
            "pairs": {
                "command": "evaluate",
                "settings": {"metrics": ["psnr"], "reference": "{made: 2}/images"},
                "space": {
                    "pair": {
                        "type": "categorical",
                        "choices": {"one to two": {"images": "{made: 1}/images"}},
                    }
                },
            },
        },
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "table.py").write_text(TABLE)
    return folder


def test_a_stage_works_on_what_another_made(experiment, tmp_path, capsys):
    output = tmp_path / "out"
    main([f"name={experiment}", f"output_dir={output}"])
    rows = from_csv((experiment / "results.csv").read_text())
    assert [row["stage"] for row in rows] == ["cost", "cost", "made", "made", "pairs", "more"]
    assert rows[-1]["steps"] == 5
    pair = Finished.read(output / "cells" / rows[4]["cell"])
    assert pair.config["images"] == str(output / "cells" / rows[2]["cell"] / "images")
    assert pair.record["command"] == "evaluate"
    assert json.loads((output / "metrics.json").read_text()) == {"experiment/cells": 6}

    # One stage alone: the others' rows are those written before, those made of several cells too.
    text = (experiment / "results.csv").read_text()
    (experiment / "results.csv").write_text(text.replace("more,5,", "more,7,"))
    rows[-1]["steps"] = 7
    before = {row["cell"]: row for row in rows if row["stage"] != "cost"}
    main([f"name={experiment}", "stages=[cost]", f"output_dir={output}"])
    again = from_csv((experiment / "results.csv").read_text())
    assert again == rows
    main(
        [
            f"name={experiment}",
            "stages=pairs",
            "settings={pairs: {metrics: [ssim]}}",
            f"output_dir={output}",
        ]
    )
    tried = from_csv((output / "results.csv").read_text())
    assert tried[4]["cell"] not in before
    assert read_record(output / "cells" / tried[4]["cell"])["status"] == "finished"
    assert from_csv((experiment / "results.csv").read_text()) == rows  # a trial commits nothing


def test_a_grid_is_run_in_parts(experiment, tmp_path):
    without = TABLE.replace("all((cells", "any((cells")
    (experiment / "table.py").write_text(without)
    how = [f"name={experiment}", "stages=[cost]", f"output_dir={tmp_path / 'out'}"]

    def rows():
        found = from_csv((experiment / "results.csv").read_text())
        return {row["steps"]: row["cell"] for row in found if row["stage"] == "cost"}

    main([*how, "points={steps: 2}"])
    (second,) = rows().values()
    main([*how, "points={steps: [1]}"])
    assert list(rows()) == [1, 2]
    assert rows()[2] == second
    first = rows()[1]
    # What was run in an earlier part need not be on disk any more.
    shutil.rmtree(tmp_path / "out" / "cells" / first)
    main([*how, "points={steps: 2}"])
    assert rows() == {1: first, 2: second}
    assert not (tmp_path / "out" / "cells" / first).exists()


def test_values_of_points_are_those_of_a_csv(experiment, tmp_path):
    """Numbers that a CSV gives back in another form, and an axis that another stage has too."""
    grid = yaml.safe_load((experiment / "grid.yaml").read_text())
    stages = grid["stages"]
    axis = {"type": "categorical", "choices": {"007": {"steps": 1}, "1e3": {"steps": 2}}}
    stages["cost"]["space"] = {"row": axis}
    stages["made"]["space"] = {"row": {"type": "categorical", "choices": {"last": {"steps": 1}}}}
    del stages["pairs"]
    (experiment / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    table = TABLE.replace("all((cells", "any((cells").replace('"steps", "pair"', '"row", "steps"')
    (experiment / "table.py").write_text(table)
    how = [f"name={experiment}", f"output_dir={tmp_path / 'out'}"]
    main([*how, "stages=[cost]", "points={row: 007}"])
    main([*how, "stages=[cost,made]", "points={row: [1e3, last]}"])
    rows = from_csv((experiment / "results.csv").read_text())
    assert [(row["stage"], row["row"]) for row in rows][:3] == [
        ("cost", 7),
        ("cost", 1000),
        ("made", "last"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["points=2"], "points=2: must be a mapping"),
        (["points={clock: 2}"], "points.clock: no such axis; there are steps, pair"),
        (["points={steps: [1, 3]}"], "points.steps=3: must be of 1, 2"),
        (["points={steps: []}"], "points.steps=[]: name at least one value"),
        (["points={steps: 1}", "settings={guidance: false}"], "cannot be given with settings"),
        (["stages=[costs]"], "stages=['costs']: must be some of cost, made, pairs"),
        (["stages=[pairs]"], "{made: 2}: no such cell of an earlier stage; there are none"),
        (["settings={cost: {stepps: 3}}"], "unknown option 'stepps'"),
    ],
)
def test_one_line_for_a_mistake(experiment, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main([f"name={experiment}", *arguments, f"output_dir={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line


def test_names_of_cells_are_put_into_lists_and_mappings(tmp_path):
    content = {
        "command": "flops",
        "settings": {},
        "metrics": ["cost/tflops_all"],
        "objectives": ["a/b", "c/d"],
        "stages": {
            "trained": {
                "space": {
                    "kind": {"type": "categorical", "choices": {"small, one": {}, "big": {}}},
                    "seed": {"type": "categorical", "choices": [0, 1]},
                }
            },
            "best": {"best_of": "trained"},
        },
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    experiment = Experiment.read(tmp_path)
    rows = [
        {"stage": stage, "kind": kind, "seed": seed, "cell": f"{stage}-{kind[0]}{seed}"}
        for stage in ("trained", "best")
        for kind in ("small, one", "big")
        for seed in (0, 1)
    ]
    given = {
        "a": ["{trained: small, one, 1}/x", {"b": "{best: big, 0}"}],
        "n": 3,
        "t": "{early: 2}",
    }
    with pytest.raises(ValueError, match=r"\{early: 2\}: no such cell"):
        experiment.placed(given, rows, tmp_path)
    del given["t"]
    assert experiment.placed(given, rows, tmp_path) == {
        "a": [f"{tmp_path}/trained-s1/x", {"b": f"{tmp_path}/best-b0"}],
        "n": 3,
    }


def test_mappings_among_the_settings():
    clocks = {"full": [1, 3]}
    given = {"model": "sd15", "method": ["clockwork"], "method.clockwork.clock": clocks}
    assert Cell.of("flops", given).config.method.clockwork.clock == clocks
    rows = ["none", {"two_words": {"clockwork": {"clock": {"drift": 0.3}, "predictor": "a, b=c"}}}]
    assert Cell.of("compare", {"methods": rows, "prompts": "a, b"}).config.methods == rows
