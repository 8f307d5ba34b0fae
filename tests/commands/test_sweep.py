"""Grids and searches by the command, on a tiny model, with a process that is killed."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from edgegen.commands._results import write_results
from edgegen.commands.sweep import main
from edgegen.runs.finished import Finished, from_csv
from edgegen.runs.record import Run, is_finished, read_record
from processes import start

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"
SPACE = {
    "steps": {"type": "categorical", "choices": [1, 2, 3]},
    "guidance": {"type": "categorical", "choices": [True, False]},
}


@pytest.fixture
def study(tiny_pipeline_folder, tmp_path):
    """Arguments that choose a study of what the tiny model costs."""
    folder = tmp_path / "configs" / "study"
    folder.mkdir(parents=True)
    content = {
        "command": "flops",
        "settings": {"model": str(tiny_pipeline_folder)},
        "space": SPACE,
        "objectives": {"cost/tflops_all": "minimize", "cost/total_params": "maximize"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return [f"hydra.searchpath=[file://{folder.parent}]", "study=mine"]


def rows(folder):
    return from_csv((folder / "results.csv").read_text())


def starts(folder):
    return {f.name: read_record(f)["start"] for f in (folder / "cells").iterdir() if is_finished(f)}


def test_what_is_left_of_three_objectives(tmp_path):
    rows = []
    for number, name in enumerate(("none", "clock 2")):
        with Run(tmp_path / "cells" / f"r{number}", config={"deep": {"_target_": name}}) as run:
            run.log({"quality/ode_rmse": number + 0.5, "cost/a": 1.5, "cost/b": 2.5, "cost/c": 1})
        rows.append({"cell": f"r{number}", "method": name, "error": None})
        rows[-1] |= {"quality/ode_rmse": number + 0.5, "cost/a": 1.5, "cost/b": 2.5}
    ways = {"quality/ode_rmse": "minimize", "cost/a": "minimize", "cost/b": "minimize"}
    write_results(tmp_path, rows, ["method"], ways, title="three")
    assert {file.name for file in tmp_path.glob("*.png")} == {"pareto.png", "pareto2.png"}
    page = (tmp_path / "report.html").read_text()
    head = re.findall(r'<th scope="col"[^>]*><button[^>]*>([^<]*)', page)
    assert head == ["run", "method", *ways]
    assert "quality/ode_rmse against cost/b" in page


def test_a_grid_runs_each_cell_once(study, tmp_path):
    folder = tmp_path / "sweep"
    main([*study, "sampler=grid", f"output_dir={folder}"])
    found = rows(folder)
    assert [(row["steps"], row["guidance"]) for row in found] == [
        (steps, guided) for steps in (1, 2, 3) for guided in ("True", "False")
    ]
    for row in found:
        run = Finished.read(folder / "cells" / row["cell"])
        assert run.config["steps"] == row["steps"]
        assert str(run.config["guidance"]) == row["guidance"]
        assert row["cost/tflops_all"] == pytest.approx(run.metrics["cost/tflops_all"], rel=1e-5)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"sweep/trials": 6, "sweep/failed": 0}
    for name in ("table.md", "pareto.png", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert is_finished(folder)

    before = starts(folder)
    assert len(before) == 6
    (folder / "cells" / found[0]["cell"] / "run.json").unlink()
    main([*study, "sampler=grid", f"output_dir={folder}"])
    after = starts(folder)
    assert {name for name in before if before[name] != after[name]} == {found[0]["cell"]}


def test_cells_that_fail_are_passed_over(study, tmp_path, capsys):
    folder = tmp_path / "sweep"
    main([*study, "sampler=grid", "study.space.steps.choices=[1,0]", f"output_dir={folder}"])
    found = rows(folder)
    assert [bool(row["error"]) for row in found] == [False, False, True, True]
    assert "steps=0" in found[2]["error"]
    assert "steps=0" in capsys.readouterr().err
    assert json.loads((folder / "metrics.json").read_text())["sweep/failed"] == 2
    assert "| 1 | True |" in (folder / "table.md").read_text()


def test_a_search_takes_cells_that_are_finished(study, tmp_path):
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    main([*study, "sampler=random", "n_trials=9", f"output_dir={folder}"])
    found = rows(folder)
    assert len(found) == 9
    assert len(starts(folder)) == len({row["cell"] for row in found}) <= 6
    before = starts(folder)
    main([*study, "sampler=random", "n_trials=9", f"output_dir={folder}"])
    assert rows(folder) == found
    assert starts(folder) == before
    assert (folder / "study.db").is_file()


def test_a_study_is_shared_by_sweeps_of_two_folders(study, tmp_path):
    """Each folder runs its share of the trials, and both tell of all."""
    pytest.importorskip("optuna")
    typed = [*study, "sampler=random", f"storage=sqlite:///{tmp_path}/study.db"]
    main([*typed, "n_trials=2", f"output_dir={tmp_path / 'one'}"])
    main([*typed, "n_trials=5", f"output_dir={tmp_path / 'two'}"])
    first, second = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert (len(first), len(second)) == (2, 5)
    for ours, theirs in zip(second, first, strict=False):
        assert ours["cell"] == theirs["cell"]
        assert ours["cost/tflops_all"] == pytest.approx(theirs["cost/tflops_all"])
    assert not any(row["error"] for row in second)


@pytest.mark.slow
def test_a_grid_by_two_processes_killed_on_the_way(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    arguments = [*study, "sampler=grid", "workers=2", f"output_dir={folder}"]
    first = start("sweep", *arguments)
    cells = folder / "cells"
    deadline = time.monotonic() + 120
    while not (cells.is_dir() and any(is_finished(f) for f in cells.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.join()
    helpers = {read_record(f).get("pid") for f in cells.iterdir()} - {first.pid, None}
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in helpers):  # they end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.1)
    early = starts(folder)
    assert read_record(folder)["status"] == "running"
    main([*study, "sampler=grid", f"output_dir={folder}"])
    assert early.items() <= starts(folder).items()
    assert [row["error"] for row in rows(folder)] == [None] * 6
    assert is_finished(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampler=tpx"], "sampler=tpx: must be one of grid, tpe"),
        (["n_trials=0"], "n_trials=0: must be a whole number"),
        (["study.command=flips"], "command=flips: must be one of"),
        (["+study.settings.stepps=3"], "unknown option 'stepps'"),
        (["study.objectives={cost/tflops_all: less}"], "must be minimize or maximize"),
        (["study.space.steps.type=real"], "space.steps: type=real"),
        (["mix=no"], "mix=no: must be true or false"),
        (["storage=nonsense"], "storage=nonsense: cannot be opened"),
    ],
)
def test_one_line_for_a_mistake(study, tmp_path, capsys, arguments, words):
    if arguments[0].startswith("storage"):
        pytest.importorskip("optuna")
    with pytest.raises(SystemExit) as stopped:
        main([*study, *arguments, f"output_dir={tmp_path / 'sweep'}"])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "sweep").exists()


def test_no_study(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"output_dir={tmp_path / 'sweep'}"])
    assert stopped.value.code == 2
    assert "study is required: give study=NAME, one of operating_point" in capsys.readouterr().err


def test_multirun_by_joblib(tmp_path):
    """`--multirun` with several processes leaves what it leaves with one."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    with Run(tmp_path / "run", config={"steps": 8}, command="flops") as run:
        run.log({"cost/x": 2.5})
    script = SCRIPT.with_name("table.py")  # light to start
    shared = [f"runs={tmp_path / 'run'}", "rows=name,settings.steps", "scores=[cost/x]"]
    launchers = {
        "basic": [],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    }
    for name, more in launchers.items():
        command = [sys.executable, str(script), *shared, "--multirun", *more]
        subprocess.run([*command, f"output_dir={tmp_path / name}"], check=True)
    for number, row in (("0", "| run | 2.5 |"), ("1", "| 8 | 2.5 |")):
        one, other = (tmp_path / name / number for name in launchers)
        assert row in (one / "table.md").read_text()
        assert (one / "table.md").read_text() == (other / "table.md").read_text()
        assert Finished.read(one).metrics == Finished.read(other).metrics
        assert Finished.read(other).record["command"] == "table"
    pids = {read_record(tmp_path / "joblib" / number)["pid"] for number in "01"}
    assert len(pids) == 2
