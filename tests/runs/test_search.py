"""Searches by real processes, some of them killed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from searching import objectives, search

from edgegen.runs.locks import is_held
from edgegen.runs.samplers import SAMPLERS
from edgegen.runs.search import Failed

WORKER = Path(__file__).with_name("searching.py")


def start(folder: Path, n: int, sampler: str = "tpe", pause: float = 0.0, *storage: str):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(WORKER), str(folder), str(n), sampler, str(pause), *storage]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def done(worker: subprocess.Popen) -> None:
    _, errors = worker.communicate(timeout=180)
    assert worker.returncode == 0, errors


def scored(folder: Path) -> list[str]:
    """Points in the order in which they were scored, with repeats."""
    path = folder / "scored"
    return (
        [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []
    )


def trials(folder: Path, sampler: str = "tpe") -> list[tuple]:
    """Point and objectives of each trial, by place."""
    found = search(folder, sampler).trials()
    assert sorted(trial.user_attrs["place"] for trial in found) == list(range(len(found)))
    found.sort(key=lambda trial: trial.user_attrs["place"])
    return [(sorted(trial.params.items()), trial.values) for trial in found]


def in_process(folder: Path, n: int, sampler: str = "tpe") -> list[tuple]:
    """What a search that nothing disturbs finds."""
    folder.mkdir()
    search(folder, sampler).run(n, lambda point, remark: objectives(point))
    return trials(folder, sampler)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_search_is_seeded(tmp_path, sampler):
    first = in_process(tmp_path / "a", 5, sampler)
    assert in_process(tmp_path / "b", 5, sampler) == first
    assert len({str(point) for point, _ in first}) == 5


def test_a_search_that_is_extended_is_the_longer_search(tmp_path):
    long = in_process(tmp_path / "long", 12)
    in_process(tmp_path / "short", 6)
    asked = []
    search(tmp_path / "short").run(12, lambda p, remark: asked.append(p) or objectives(p))
    assert len(asked) == 6
    assert trials(tmp_path / "short") == long


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_it_never_was(tmp_path):
    """No trial is lost, none is made twice, and no number changes."""
    n, seed = 14, random.Random(7)
    whole = in_process(tmp_path / "whole", n)
    folder = tmp_path / "killed"
    for _ in range(4):
        before = len(scored(folder))
        worker = start(folder, n, "tpe", 0.3)
        while len(scored(folder)) == before and worker.poll() is None:
            time.sleep(0.02)
        time.sleep(seed.random() * 0.8)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert len(scored(folder)) < n, "killed too late to show anything"
    done(start(folder, n, "tpe", 0.0))
    assert trials(folder) == whole
    # Only a point that was being scored at the kill is scored again.
    again = len(scored(folder)) - len(set(scored(folder)))
    assert again <= 4
    assert set(scored(folder)) == {repr(point) for point, _ in whole}


@pytest.mark.slow
def test_three_workers_one_of_them_killed(tmp_path):
    n, folder = 20, tmp_path / "shared"
    workers = [start(folder, n, "random", 0.3) for _ in range(3)]
    while len(scored(folder)) < 4:
        time.sleep(0.05)
    victim = next(w for w in workers if f"{w.pid} " in (folder / "scored").read_text())
    victim.kill()
    for worker in workers:
        if worker is victim:
            worker.wait()
        else:
            done(worker)
    found = trials(folder, "random")
    assert len(found) == n
    assert len({str(point) for point, _ in found}) == n
    assert all(values == objectives(dict(point)) for point, values in found if values)
    pids = {line.partition(" ")[0] for line in (folder / "scored").read_text().splitlines()}
    assert len(pids) == 3
    # All the trials of the samplers' random streams, whoever drew them.
    assert {str(p) for p, _ in found} == {
        str(p) for p, _ in in_process(tmp_path / "one", n, "random")
    }


def test_one_worker_at_a_time_asks_and_all_score_at_once(tmp_path, monkeypatch):
    study, seen = search(tmp_path), []
    ask = study.study.ask

    def asked(*args, **kwargs):
        seen.append(("ask", is_held(study._asking)))
        return ask(*args, **kwargs)

    def score(point, remark):
        seen.append(("score", is_held(study._asking)))
        return [1.0, 2.0]

    monkeypatch.setattr(study.study, "ask", asked)
    study.run(2, score)
    assert seen == [("ask", True), ("score", False)] * 2


def test_what_cannot_be_scored_counts_and_is_not_tried_again(tmp_path):
    asked = []

    def score(point, remark):
        asked.append(point)
        remark("cell", "here")
        if len(asked) == 2:
            raise Failed("no such thing")
        return [1.0, 2.0]

    study = search(tmp_path)
    study.run(4, score)
    study.run(4, score)
    assert len(asked) == 4
    states = [trial.state.name for trial in study.trials()]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = [trial for trial in study.trials() if trial.state.name == "FAIL"]
    assert failed.user_attrs["error"] == "no such thing"
    assert failed.user_attrs["cell"] == "here"


def test_another_error_ends_the_worker_and_the_point_is_tried_again(tmp_path):
    whole = in_process(tmp_path / "whole", 5)

    def broken(point, remark):
        raise RuntimeError("a fault of ours")

    (tmp_path / "a").mkdir()
    study = search(tmp_path / "a")
    study.run(2, lambda point, remark: objectives(point))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        study.run(5, broken)
    assert len(study.trials()) == 2
    study.run(5, lambda point, remark: objectives(point))
    assert trials(tmp_path / "a") == whole


def test_a_study_is_not_gone_on_with_for_something_else(tmp_path):
    search(tmp_path, "tpe", seed=0)
    search(tmp_path, "tpe", seed=0)
    with pytest.raises(ValueError, match="begun with another seed: 0, and now 1"):
        search(tmp_path, "tpe", seed=1)


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////proc/no/study.db"])
def test_a_storage_that_cannot_be_opened(tmp_path, storage):
    with pytest.raises((ValueError, OSError)) as told:
        search(tmp_path, storage=storage)
    assert "\n" not in str(told.value)


def test_an_unknown_sampler(tmp_path):
    with pytest.raises(ValueError, match="sampler=tpx: must be one of grid, tpe"):
        search(tmp_path, "tpx")
