"""Searches by real processes, some of them killed."""

import random
import sqlite3
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from searching import objectives, search, work

from edgegen.runs.locks import is_held
from edgegen.runs.samplers import SAMPLERS
from edgegen.runs.search import Failed, Search
from processes import fork


def start(folder: Path, n: int, sampler: str = "tpe", pause: float = 0.0) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    return fork(work, folder, n, sampler, pause)


def go(folder: Path, workers: list[BaseProcess]) -> None:
    """Let workers begin, all at once, whenever they came."""
    while len(lines(folder / "ready")) < len(workers):
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.02)
    (folder / "go").touch()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def done(worker: BaseProcess) -> None:
    worker.join(180)
    assert worker.exitcode == 0


def scored(folder: Path) -> list[str]:
    """Points in the order in which they were scored, with repeats."""
    return [line.partition(" ")[2] for line in lines(folder / "scored")]


def trials(study: Search) -> list[tuple]:
    """Point and objectives of each trial, by place."""
    found = study.trials()
    assert sorted(trial.user_attrs["place"] for trial in found) == list(range(len(found)))
    found.sort(key=lambda trial: trial.user_attrs["place"])
    return [(sorted(trial.params.items()), trial.values) for trial in found]


def in_process(folder: Path, n: int, sampler: str = "tpe") -> list[tuple]:
    """What a search that nothing disturbs finds."""
    folder.mkdir()
    study = search(folder, sampler)
    study.run(n, lambda point, remark: objectives(point))
    return trials(study)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_search_is_seeded(tmp_path, sampler):
    first = in_process(tmp_path / "a", 5, sampler)
    assert in_process(tmp_path / "b", 5, sampler) == first
    assert len({str(point) for point, _ in first}) == 5


def test_a_search_that_is_extended_is_the_longer_search(tmp_path):
    long = in_process(tmp_path / "long", 12)
    in_process(tmp_path / "short", 6)
    asked = []
    study = search(tmp_path / "short")
    study.run(12, lambda p, remark: asked.append(p) or objectives(p))
    assert len(asked) == 6
    assert trials(study) == long


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_it_never_was(tmp_path):
    """No trial is lost, none is made twice, and no number changes."""
    n, seed = 14, random.Random(7)
    whole = in_process(tmp_path / "whole", n)
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "go").touch()
    for _ in range(3):
        before = len(scored(folder))
        worker = start(folder, n, "tpe", 0.3)
        while len(scored(folder)) == before and worker.is_alive():
            time.sleep(0.02)
        time.sleep(seed.random() * 0.8)
        worker.kill()
        worker.join()
    assert len(scored(folder)) < n, "killed too late to show anything"
    done(start(folder, n, "tpe", 0.0))
    assert trials(search(folder)) == whole
    # Only a point that was being scored at the kill is scored again.
    again = len(scored(folder)) - len(set(scored(folder)))
    assert again <= 3
    assert set(scored(folder)) == {repr(point) for point, _ in whole}


@pytest.mark.slow
def test_three_workers_one_of_them_killed(tmp_path):
    n, folder = 12, tmp_path / "shared"
    workers = [start(folder, n, "random", 0.2) for _ in range(3)]
    go(folder, workers)
    while len({line.partition(" ")[0] for line in lines(folder / "scored")}) < 3:
        time.sleep(0.02)
    victim = workers[1]
    victim.kill()
    for worker in workers:
        if worker is victim:
            worker.join()
        else:
            done(worker)
    found = trials(search(folder, "random"))
    assert len(found) == n
    assert len({str(point) for point, _ in found}) == n
    assert all(values == objectives(dict(point)) for point, values in found if values)
    # Nothing is scored again but what the victim was at.
    assert len(scored(folder)) - len(set(scored(folder))) <= 1
    # All the trials of the samplers' random streams, whoever drew them.
    assert {str(p) for p, _ in found} == {
        str(p) for p, _ in in_process(tmp_path / "one", n, "random")
    }


def test_a_worker_that_is_slow_is_not_given_up(tmp_path):
    """Its signs of life may be hours old: on one machine it lives as long as its lock is held."""
    scored, other = [], []

    def age() -> None:
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 day')")
            database.execute("UPDATE trials SET datetime_start = datetime('now', '-1 day')")

    def second() -> None:
        search(tmp_path).run(3, lambda point, remark: other.append(point) or [1.0, 2.0])

    def slow(point, remark):
        scored.append(point)
        if len(scored) == 1:
            age()
            thread.start()
            while len(other) < 2:
                time.sleep(0.02)
            time.sleep(0.1)  # for it to look at what is left
        return [1.0, 2.0]

    thread = threading.Thread(target=second)
    study = search(tmp_path)
    study.run(3, slow)
    thread.join()
    assert (len(scored), len(other)) == (1, 2)
    assert [trial.state.name for trial in study.study.trials] == ["COMPLETE"] * 3


def test_a_worker_that_died_while_it_asked_holds_nobody_up(tmp_path):
    """Its trial is in the database, unsigned; other workers live."""
    study = search(tmp_path, heartbeat=1000)
    study.study.ask()
    with search(tmp_path)._alive():
        run = threading.Thread(
            target=study.run, args=(3, lambda point, remark: objectives(point)), daemon=True
        )
        run.start()
        run.join(timeout=120)  # of 6000 seconds that a sign of life may be late
        assert not run.is_alive()
    assert len(study.trials()) == 3
    assert trials(study) == in_process(tmp_path / "one", 3)


def test_a_worker_that_died_while_it_told_of_a_failure(tmp_path):
    """What it wrote down counts: the point is not tried again, nor its place given twice."""
    study = search(tmp_path)
    trial = study.study.ask()
    for key, value in {"worker": "gone", "place": 0, "drawn": True, "error": "no"}.items():
        trial.set_user_attr(key, value)
    asked = []
    study.run(3, lambda point, remark: asked.append(point) or [1.0, 2.0])
    assert len(asked) == 2
    assert [values for _, values in trials(study)] == [None, [1.0, 2.0], [1.0, 2.0]]


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
    assert trials(study) == whole


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
