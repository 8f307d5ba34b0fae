import json

import pytest

from edgegen.commands.table import main
from edgegen.runs.finished import from_csv
from edgegen.runs.record import Run, read_record
from edgegen.runs.tables import make_table


@pytest.fixture
def runs(tmp_path):
    """Two schedulers at two step counts, the last still running."""
    values = {("DDIM", 4): 0.5, ("DDIM", 8): 0.2, ("Euler", 4): 0.45, ("Euler", 8): 0.3}
    for number, ((scheduler, steps), value) in enumerate(values.items()):
        run = Run(tmp_path / "x" / str(number), config={"steps": steps, "scheduler": None})
        run.info(settings={"scheduler": scheduler}, code="c1")
        run.log({"quality/a_rmse": value, "quality/a_rmse_lo": value - 0.06})
        run.log({"quality/a_rmse_hi": value + 0.06})
        if number < 3:
            run.finish()
    return tmp_path


def table(folder, *arguments):
    main([f"runs={folder}/x/*", f"output_dir={folder}/table", *arguments])
    return (folder / "table" / "table.md").read_text()


ASKED = ["rows=settings.scheduler", "cols=settings.steps", "scores=[quality/a_rmse]"]


def test_a_table_of_the_finished_runs(runs, capsys):
    text = table(runs, *ASKED)
    assert text.splitlines()[:4] == [
        "| scheduler | steps 4 | steps 8 |",
        "| --- | ---: | ---: |",
        "| DDIM | **0.500 [0.440, 0.560]** | 0.200 [0.140, 0.260] |",
        "| Euler | **0.450 [0.390, 0.510]** |  |",
    ]
    printed = capsys.readouterr().out
    assert printed.startswith(text)
    assert printed.endswith("1 of 4 runs left out: not finished\n")
    assert read_record(runs / "table")["status"] == "finished"
    metrics = json.loads((runs / "table" / "metrics.json").read_text())
    assert metrics == {"run/runs": 3, "run/runs_unfinished": 1}


def test_the_table_comes_from_its_csv(runs):
    text = table(runs, *ASKED)
    rows = from_csv((runs / "table" / "results.csv").read_text())
    assert len(rows) == 3
    again = make_table(rows, ["settings.scheduler"], ["settings.steps"], ["quality/a_rmse"])
    assert again.markdown() == text
    assert again.latex() == (runs / "table" / "table.tex").read_text()


def test_other_forms(runs, capsys):
    table(runs, *ASKED, "print=csv", "intervals=false")
    assert capsys.readouterr().out.startswith("settings.scheduler,settings.steps,quality/a_rmse,")
    text = table(runs, *ASKED, "print=latex", "intervals=false", "higher=[quality/a_rmse]")
    assert "[" not in text
    assert r"\begin{tabular}" in capsys.readouterr().out


def test_runs_of_different_code(runs, capsys):
    with Run(runs / "x" / "9", config={"steps": 9}) as other:
        other.info(settings={"scheduler": "PNDM"}, code="c2")
        other.log({"quality/a_rmse": 0.1})
    with pytest.raises(SystemExit) as stopped:
        table(runs, *ASKED)
    assert stopped.value.code == 2
    assert "2 versions of the code" in capsys.readouterr().err
    assert not (runs / "table").exists()
    assert "PNDM" in table(runs, *ASKED, "mix=true")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rows=settings.scheduler"], "scores is required"),
        ([*ASKED[:2], "scores=[quality/b]"], "quality/b: in none of the 3 runs"),
        (["rows=settings.color", ASKED[2]], "settings.color: in none of the 3 runs"),
        ([*ASKED, "print=html"], "print=html: must be one of markdown, latex, csv"),
        (["rows=settings.scheduler", ASKED[2]], "scheduler=DDIM: two runs fall into this cell"),
        ([*ASKED, "lower=[a/b]", "higher=[a/b]"], "a/b is named in lower and in higher"),
        (["rows=3", ASKED[2]], "rows=3: must be a text"),
        ([*ASKED, "mix=no"], "mix=no: must be true or false"),
        ([*ASKED, "intervals=never"], "intervals=never: must be true or false"),
    ],
)
def test_one_line_for_a_mistake(runs, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        table(runs, *arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line
    assert not (runs / "table").exists()
