"""Cells on disk, as the commands write them, with known numbers in them."""

import csv
import json

import numpy as np
import pytest

from edgegen.runs.cell_samples import (
    add_differences,
    add_latency,
    difference_rows,
    front_rows,
    read_scores,
    renewed,
    time_ratio_rows,
)

ERROR = "quality/ode_rmse"


def cell(root, name, values, prompts=None):
    folder = root / name
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "prompt", "seed", ERROR])
        for place, value in enumerate(values):
            prompt = f"a, {place}" if prompts is None else prompts[place]
            writer.writerow([f"images/{place:06}.png", prompt, 0, repr(float(value))])
    mean = float(sum(values) / len(values))
    return {"stage": "rows", "row": name, "cell": name, "cost": 1.0, ERROR: mean}


def test_scores_are_read_back(tmp_path):
    cell(tmp_path, "one", [0.25, 0.5])
    values, asked = read_scores(tmp_path / "one", ERROR)
    assert values.tolist() == [0.25, 0.5]
    assert asked == [("a, 0", "0"), ("a, 1", "0")]
    with pytest.raises(ValueError, match="quality/x is not among"):
        read_scores(tmp_path / "one", "quality/x")


def test_differences_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 5, 40)
    base = cell(tmp_path, "base", noise)
    row = cell(tmp_path, "row", noise + 1 + rng.normal(0, 0.01, 40))
    gone = {"stage": "rows", "row": "gone", "cell": "gone", f"{ERROR}_vs_base": 3.0}
    found = add_differences(
        [base, row, gone], tmp_path, [ERROR], lambda each: None if each is base else base, "base"
    )
    assert found[0] == base
    assert found[1][f"{ERROR}_vs_base"] == pytest.approx(1, abs=0.01)
    assert 0.98 < found[1][f"{ERROR}_vs_base_lo"] < found[1][f"{ERROR}_vs_base_hi"] < 1.02
    assert found[2] == gone  # what a fresh clone has of it stays
    (pair,) = difference_rows(tmp_path, "pairs", {"a": (row, base), "b": (gone, base)}, [ERROR])
    assert pair[f"{ERROR}_change"] == found[1][f"{ERROR}_vs_base"]
    lacking = dict(row) | {"another": None}
    assert difference_rows(tmp_path, "pairs", {"a": (lacking, base)}, ["another"]) == [
        {"stage": "pairs", "pair": "a"}
    ]
    other = cell(tmp_path, "other", noise, prompts=["b"] * 40)
    with pytest.raises(ValueError, match="other prompts"):
        difference_rows(tmp_path, "pairs", {"a": (row, other)}, [ERROR])


def test_what_is_kept_is_of_the_cells_that_stand_there():
    rows = [{"stage": "rows", "row": name, "cell": f"r{name}"} for name in "abc"]
    a, b, c = rows
    parts = {"a < b": (a, b), "b < c": (b, c)}
    first = renewed(rows, "pairs", [{"stage": "pairs", "pair": each} for each in parts], parts)
    assert first[:3] == rows
    assert [row["cells"] for row in first[3:]] == ["ra rb", "rb rc"]
    assert renewed(first, "pairs", [], parts) == first  # where no cell is on disk
    c["cell"] = "anew"
    assert [row["pair"] for row in renewed(first, "pairs", [], parts)[3:]] == ["a < b"]


def test_fronts(tmp_path):
    """Ours beats (2, 1) by a box of 1 × ½; theirs by one of 1 × ¼ and one of ½ × ¼."""
    plain = cell(tmp_path, "plain", [1 / 1.1] * 4) | {"cost": 2 / 1.1}
    ours = cell(tmp_path, "ours", [0.4, 0.6, 0.5, 0.5]) | {"cost": 1.0}
    first = cell(tmp_path, "first", [0.75] * 4) | {"cost": 1.0}
    second = cell(tmp_path, "second", [0.5] * 4) | {"cost": 1.5}
    groups = {"ours": [ours], "peers": [first, second]}
    how = {"cost": "cost", "error": ERROR, "corner": (plain, plain)}
    found = front_rows([], tmp_path, groups, **how)
    values = {row["front"]: row["quality/hypervolume"] for row in found}
    assert values == pytest.approx({"ours": 0.5, "peers": 0.375, "ours − peers": 0.125})
    kept = [{"stage": "fronts", "front": "ours"}]
    missing = {"ours": [{"cell": "none"}], "peers": [first]}
    assert front_rows(kept, tmp_path, missing, **how) == kept


def test_times_come_from_the_comparison(tmp_path):
    folder = tmp_path / "timed"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "results.csv").write_text(
        "method,cost/seconds_per_image,cost/seconds_per_image_q25,cost/seconds_per_image_q75,"
        "cost/time_ratio,cost/time_ratio_lo,cost/time_ratio_hi\n"
        "none,2.0,1.9,2.1,,,\nours,1.0,0.9,1.1,0.5,0.4,0.6\n"
    )
    rows = [
        {"stage": "latency", "steps": "8", "cell": "timed"},
        {"stage": "rows", "row": "8 plain"},
        {"stage": "rows", "row": "8 ours"},
        {"stage": "rows", "row": "4 ours"},
    ]

    def place(row):
        if row["stage"] != "rows":
            return None
        steps, _, name = row["row"].partition(" ")
        return steps, {"plain": "none"}.get(name, name)

    found = add_latency(rows, tmp_path, "latency", "steps", place)
    name = "cost/seconds_per_image_interleaved"
    assert [row.get(name) for row in found] == [None, 2.0, 1.0, None]
    assert (found[2][f"{name}_q25"], found[2][f"{name}_q75"]) == (0.9, 1.1)
    assert [row.get("cost/time_ratio") for row in found] == [None, None, 0.5, None]


def test_ratios_of_times_are_taken_round_by_round(tmp_path):
    folder = tmp_path / "timed"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    lines = ["round,place,method,seconds"]
    for number in range(7):  # the machine becomes slower and slower
        lines += [f"{number},1,theirs,{2.0**number}", f"{number},0,ours,{0.5 * 2.0**number}"]
    (folder / "times.csv").write_text("\n".join(lines) + "\n")
    rows = [{"stage": "latency", "steps": "8", "cell": "timed"}, {"stage": "rows", "row": "x"}]
    (found,) = time_ratio_rows(
        rows, tmp_path, "latency", "steps", "8", {"a / b": ("ours", "theirs")}
    )
    assert found == {
        "stage": "times",
        "pair": "a / b",
        "cost/time_ratio": 0.5,
        "cost/time_ratio_lo": 0.5,
        "cost/time_ratio_hi": 0.5,
        "cost/time_ratio_n": 7,
    }
    assert not time_ratio_rows(
        rows, tmp_path, "latency", "steps", "4", {"a / b": ("ours", "theirs")}
    )
