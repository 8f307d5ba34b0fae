import csv
import io
import json
import re
from pathlib import Path

import pytest

from edgegen.runs.finished import finished_runs, from_csv, results, run_folders, to_csv
from edgegen.runs.record import Run
from edgegen.runs.tables import Score, best_of, direction, make_table, pairs_table, score_text


def made(folder: Path, config: dict, metrics: dict, code: str | None = "c0", **info) -> Path:
    """A finished run."""
    with Run(folder, config=config, command="made") as run:
        if code is not None:
            info["code"] = code
        run.info(**info)
        run.log(metrics)
    if code is None:  # as versions before wrote it
        record = json.loads((folder / "run.json").read_text())
        del record["code"]
        (folder / "run.json").write_text(json.dumps(record))
    return folder


# Finding and reading runs


def test_finished_runs_alone_are_taken(tmp_path):
    made(tmp_path / "a", {"steps": 4}, {"quality/x": 1})
    failed = Run(tmp_path / "b", config={})
    failed.log({"quality/x": 2})
    failed.__exit__(RuntimeError, RuntimeError("broken"), None)
    Run(tmp_path / "c", config={}).start()
    folders = run_folders(str(tmp_path / "*"))
    assert [folder.name for folder in folders] == ["a", "b", "c"]
    assert [run.folder.name for run in finished_runs(folders)] == ["a"]
    with pytest.raises(ValueError, match="none of the 2 runs is finished"):
        finished_runs(folders[1:])


def test_a_sweeps_folder_stands_for_its_cells(tmp_path):
    made(tmp_path / "sweep", {}, {})
    for name in "ab":
        made(tmp_path / "sweep" / "cells" / name, {}, {})
    made(tmp_path / "plain" / "deep" / "c", {}, {})
    assert [f.name for f in run_folders([str(tmp_path / "sweep")])] == ["a", "b"]
    assert [f.name for f in run_folders(str(tmp_path / "plain"))] == ["c"]
    both = run_folders([str(tmp_path / "*"), str(tmp_path / "sweep")])
    assert sorted(f.name for f in both) == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match=r"runs=.*nothing: no run"):
        run_folders(str(tmp_path / "nothing"))


def test_code_versions_are_not_mixed(tmp_path):
    folders = [made(tmp_path / name, {}, {}, code=name) for name in ("c1", "c2")]
    with pytest.raises(ValueError, match=r"2 versions of the code.*code c1.*code c2.*mix=true"):
        finished_runs(folders)
    assert len(finished_runs(folders, mix=True)) == 2
    assert len(finished_runs([folders[0], folders[0]])) == 2


@pytest.mark.parametrize(
    ("git", "same"),
    [
        ({"sha": "a" * 40, "dirty": False}, True),
        ({"sha": "b" * 40, "dirty": False}, False),
        ({"sha": "a" * 40, "dirty": True, "diff_sha256": "d" * 64}, False),
    ],
)
def test_runs_without_a_hash_of_their_code_go_by_commit_and_changes(tmp_path, git, same):
    first = made(tmp_path / "1", {}, {}, code=None, git={"sha": "a" * 40, "dirty": False})
    other = made(tmp_path / "2", {}, {}, code="c0", git=git)
    if same:
        assert len(finished_runs([first, other])) == 2
    else:
        with pytest.raises(ValueError, match=r"commit aaaaaaaaaaaa.* by commit"):
            finished_runs([first, other])


def test_values_by_key(tmp_path):
    folder = made(
        tmp_path / "me",
        {"scheduler": None, "method": {"clockwork": {"clock": 2}}, "steps": 4},
        {"quality/x": 1.5},
        settings={"scheduler": "DDIM"},
    )
    (run,) = finished_runs([folder])
    assert run.value("name") == "me"
    assert run.value("settings.scheduler") == "DDIM"
    assert run.value("config.scheduler") is None
    assert run.value("settings.method.clockwork.clock") == 2
    assert run.value("quality/x") == 1.5
    assert run.value("versions.edgegen") is not None
    assert run.value("settings.nothing.at.all") is None
    with pytest.raises(ValueError, match=r"settings.stepps: in none of the 1 runs; there are .*"):
        results([run], ["settings.stepps"], ["quality/x"])
    with pytest.raises(ValueError, match=r"quality/y: in none of the 1 runs; there are quality/x"):
        results([run], ["name"], ["quality/y"])


def test_results_survive_csv(tmp_path):
    folder = made(
        tmp_path / "a, b",
        {"text": 'commas, "quotes"', "list": [0, 1], "n": 3},
        {"quality/x": 0.123456789, "quality/x_lo": 0.1, "quality/x_hi": 0.2, "quality/x_n": 200},
    )
    keys = ["name", "settings.text", "settings.list", "settings.n"]
    text = to_csv(results(finished_runs([folder]), keys, ["quality/x"]))
    (row,) = from_csv(text)
    assert row == {
        "name": "a, b",
        "settings.text": 'commas, "quotes"',
        "settings.list": "[0, 1]",
        "settings.n": 3,
        "quality/x": 0.123457,
        "quality/x_lo": 0.1,
        "quality/x_hi": 0.2,
        "quality/x_n": 200,
    }
    assert to_csv([row]) == text
    assert next(csv.reader(io.StringIO(text))) == list(row)


# Marking


def overlap(a: Score, b: Score) -> bool:
    """By looking at points, not ends."""
    grid = [i / 100 for i in range(0, 1001)]
    return any(a.low <= x <= a.high and b.low <= x <= b.high for x in grid)


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("seed", range(20))
def test_the_best_and_all_that_cannot_be_told_from_it(seed, better):
    import random

    rng = random.Random(seed)
    scores = {}
    for name in "abcdef":
        middle, half = rng.randrange(200, 800), rng.randrange(0, 100)
        scores[name] = Score(middle / 100, (middle - half) / 100, (middle + half) / 100)
    value = min if better == "lower" else max
    first = value(scores, key=lambda name: scores[name].value)
    assert best_of(scores, better) == {n for n in scores if overlap(scores[n], scores[first])}


def test_touching_intervals_overlap_and_bare_numbers_are_points():
    scores = {"a": Score(1, 0.5, 1.5), "b": Score(2, 1.5, 2.5), "c": Score(1.6, 1.6, 1.6)}
    assert best_of(scores, "lower") == {"a", "b"}
    assert best_of({"a": Score(1, 1, 1), "b": Score(1, 1, 1)}, "lower") == set()
    assert best_of({"a": Score(1, 1, 1)}, "lower") == set()


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("quality/ode_rmse", "lower"),
        ("quality/fd_pca64_efflite0", "lower"),
        ("quality/psnr_db", "higher"),
        ("quality/clip_judge", "higher"),
        ("quality/ode_clip", "lower"),
        ("cost/tflops_all", "lower"),
        ("cost/seconds_per_image", "lower"),
        ("quality/concept_accuracy", "higher"),
        ("quality/copy_rate", "lower"),
        ("run/images", None),
    ],
)
def test_which_way_is_better(metric, way):
    assert direction(metric) == way


# Tables

ROWS = [
    {
        **{"scheduler": scheduler, "steps": steps, "run/images": steps},
        **{"quality/x_rmse": value, "quality/x_rmse_lo": value - 0.02},
        **{"quality/x_rmse_hi": value + 0.02},
    }
    for scheduler, steps, value in [
        ("DDIM", 16, 0.2),
        ("DDIM", 4, 0.5),
        ("DPM_a|b", 16, 0.23),
        ("DPM_a|b", 4, 0.3),
        ("Euler", 16, 0.4),
    ]
]


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip() for cell in line] for line in split]


def test_rows_by_columns():
    table = make_table(ROWS, ["scheduler"], ["steps"], ["quality/x_rmse"])
    heads, _, *lines = cells(table.markdown())
    assert heads == ["scheduler", "steps 4", "steps 16"]
    assert lines == [
        ["DDIM", "0.500 [0.480, 0.520]", "**0.200 [0.180, 0.220]**"],
        [r"DPM_a\|b", "**0.300 [0.280, 0.320]**", "**0.230 [0.210, 0.250]**"],
        ["Euler", "", "0.400 [0.380, 0.420]"],
    ]
    assert "Bold: the best of a column" in table.markdown()


def test_metrics_as_columns_and_ways_that_are_unknown():
    metrics = ["quality/x_rmse", "run/images"]
    table = make_table(ROWS, ["scheduler", "steps"], [], metrics)
    heads, _, *lines = cells(table.markdown(intervals=False))
    assert heads == ["scheduler", "steps", "quality/x_rmse ↓", "run/images"]
    assert [line[:2] for line in lines][:3] == [["DDIM", "4"], ["DDIM", "16"], [r"DPM_a\|b", "4"]]
    assert lines[1][2:] == ["**0.200**", "16"]
    assert "is not known of run/images" in table.markdown()
    told = make_table(ROWS, ["scheduler", "steps"], [], metrics, {"run/images": "higher"})
    assert {place[0][1] for place in told.best if place[2] == "run/images"} == {16}


def test_latex_is_escaped_and_bold():
    text = make_table(ROWS, ["scheduler"], ["steps"], ["quality/x_rmse"]).latex()
    assert r"DPM\_a|b & \textbf{0.300 [0.280, 0.320]}" in text
    assert text.count(r"\\") == 4
    assert r"\begin{tabular}{lrr}" in text
    head = make_table(ROWS, ["scheduler", "steps"], [], ["quality/x_rmse"]).latex()
    assert r"quality/x\_rmse $\downarrow$ \\" in head


def test_two_runs_in_one_cell_are_refused():
    with pytest.raises(ValueError, match=r"scheduler=DDIM: two runs fall into this cell"):
        make_table(ROWS, ["scheduler"], [], ["quality/x_rmse"])


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (Score(0.123456, 0.1222, 0.1247), "0.1235 [0.1222, 0.1247]"),
        (Score(31.4159, 30.1, 32.9), "31.4 [30.1, 32.9]"),
        (Score(1234.5, 1100.0, 1400.0), "1234 [1100, 1400]"),
        (Score(3.14159, 3.14159, 3.14159), "3.142"),
        (Score(859520964, 859520964, 859520964), "859520964"),
        (Score(0.0000123456, 0.0000123456, 0.0000123456), "1.235e-05"),
        (Score(0, 0, 0), "0"),
    ],
)
def test_numbers_to_the_digits_that_they_bear(score, text):
    assert score_text(score) == text


def test_a_null_metric_is_an_empty_cell(tmp_path):
    folder = tmp_path / "a"
    with Run(folder, config={"steps": 4}) as run:
        run.log({"quality/x": 1.0})
        run.note("quality/y", "no weights")
    rows = from_csv(to_csv(results(finished_runs([folder]), ["name"], ["quality/x", "quality/y"])))
    assert rows[0]["quality/y"] is None
    table = make_table(rows, ["name"], [], ["quality/x", "quality/y"])
    assert cells(table.markdown())[2] == ["a", "1", ""]
    assert json.loads((folder / "metrics.json").read_text())["quality/y"] is None


def test_pairs_say_on_which_side_of_zero_they_lie():
    rows = [
        {"pair": "a b < c", "q/e": -0.2, "q/e_lo": -0.3, "q/e_hi": -0.1},
        {"pair": "d < e", "q/e": 0.2, "q/e_lo": 0.1, "q/e_hi": 0.3},
        {"pair": "f < g", "q/e": 0.0, "q/e_lo": -0.1, "q/e_hi": 0.1},
    ]
    assert pairs_table(rows, "q/e", "errs less | than").splitlines() == [
        "| errs less | than | difference | |",
        "| --- | --- | ---: | --- |",
        "| a b | c | -0.20 [-0.30, -0.10] | yes |",
        "| d | e | 0.20 [0.10, 0.30] | no, more |",
        "| f | g | 0.00 [-0.10, 0.10] | not told apart |",
    ]
    assert pairs_table([], "q/e", "errs less | than") == ""
