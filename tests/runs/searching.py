"""A worker of a search, for a process of its own.

It says in FOLDER/ready that it is there, and begins when there is a FOLDER/go. Each point that is
scored is appended to FOLDER/scored.
"""

import os
import random
import time
from pathlib import Path

from edgegen.runs.search import Failed, Search
from edgegen.runs.space import read_axes

SPACE = {
    "steps": {"type": "int", "low": 1, "high": 50, "log": True},
    "guidance": {"type": "float", "low": 1, "high": 8},
    "scheduler": {"type": "categorical", "choices": ["a", "b", "c"]},
}


def search(
    folder: Path,
    sampler: str = "tpe",
    storage: str | None = None,
    heartbeat: int = 1,
    **changes,
) -> Search:
    settings = {"space": SPACE, "sampler": sampler} | changes
    return Search(
        storage or f"sqlite:///{folder / 'study.db'}",
        "study",
        read_axes(SPACE),
        {"error": "minimize", "cost": "minimize"},
        sampler=sampler,
        seed=0,
        settings=settings,
        folder=folder,
        heartbeat=heartbeat,
    )


def objectives(point: dict) -> list[float]:
    if point["steps"] == 1:
        raise Failed("one step is too few")
    error = point["guidance"] / point["steps"] + "abc".index(point["scheduler"])
    return [error, float(point["steps"])]


def work(folder: Path, n: int, sampler: str, pause: float) -> None:
    random.seed()  # so that workers pause in different places

    def score(point: dict, remark) -> list[float]:
        time.sleep(pause * random.random())
        with open(folder / "scored", "a") as file:
            file.write(f"{os.getpid()} {sorted(point.items())!r}\n")
        time.sleep(pause * random.random())
        return objectives(point)

    study = search(folder, sampler)
    with open(folder / "ready", "a") as file:
        file.write(f"{os.getpid()}\n")
    while not (folder / "go").exists():
        time.sleep(0.01)
    study.run(n, score)
