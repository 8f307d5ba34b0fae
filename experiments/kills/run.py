"""Kills an evaluation, a search and a training at random moments, and looks at what is left.

    python experiments/kills/run.py [NEW_FOLDER]

The commands run in processes forked off a server that has imported torch: a kill then falls into
their work, and not into seconds of importing.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from edgegen.runs.experiment import table_code
from edgegen.runs.finished import from_csv, to_csv
from edgegen.runs.record import is_finished, read_record

HERE = Path(__file__).parent
KILLED = ("evaluate", "sweep", "train")
TIMES = ("cost/seconds_per_image", "cost/peak_memory_mb")
SEARCH = {
    "command": "flops",
    "settings": {"model": "emoji"},
    "space": {
        "steps": {"type": "int", "low": 1, "high": 40},
        "guidance": {"type": "categorical", "choices": [True, False]},
        "batch": {"type": "int", "low": 1, "high": 4},
    },
    "objectives": {"cost/tflops_all": "minimize", "cost/total_params": "maximize"},
}
Done = dict[str, Any]
"""Finished work: what it is called to a mark that changes where it is done again or otherwise."""


@dataclass(frozen=True)
class Job:
    """A command to be killed.

    Args:
        arguments: what is typed, but for the folder.
        again: what is typed as well to go on, once there is something to go on with.
        done: the finished work in a folder.
        outcome: what a finished run came to, without times.
        kills: how many.
        total: pieces of work.
    """

    command: str
    arguments: list[str]
    again: Callable[[Path], list[str]]
    done: Callable[[Path], Done]
    outcome: Callable[[Path], Any]
    kills: int
    total: int


def main(root: Path) -> None:
    """Run all jobs; write the results and the table beside this file."""
    if root.exists():
        raise SystemExit(f"{root}: is there already; name a new folder")
    (root / "configs/study").mkdir(parents=True)
    (root / "configs/study/work.yaml").write_text(yaml.safe_dump(SEARCH, sort_keys=False))
    os.chdir(root)
    rows: list[dict[str, Any]] = []
    for name, job in jobs().items():
        rows += kill_again_and_again(name, job)
        shown = from_csv(to_csv(rows))
        (HERE / "results.csv").write_text(to_csv(rows), encoding="utf-8")
        (HERE / "table.md").write_text(table_code(HERE).table(shown), encoding="utf-8")
    print((HERE / "table.md").read_text(encoding="utf-8"))
    if any(row["lost"] or not row["same"] for row in rows):
        raise SystemExit("finished work was lost, or a number changed: see table.md")


def kill_again_and_again(name: str, job: Job) -> list[dict[str, Any]]:
    """Kill a run until it ends before its kill, then begin another, until all kills are done."""
    whole = Path(name, "whole")
    finish(job, whole)
    expected = job.outcome(whole)
    times = [datetime.fromisoformat(read_record(whole)[end]) for end in ("start", "end")]
    # Less than all of it, which was slower than later ones: its files were read from the disk.
    length = 0.7 * (times[1] - times[0]).total_seconds()
    rows: list[dict[str, Any]] = []
    seed = 0
    while len(rows) < job.kills:
        folder, own = Path(name, f"from-{seed}"), []
        while len(rows) + len(own) < job.kills:
            delay = random.Random(f"{name}/{seed}").random() * length
            before = job.done(folder)
            process = start(job, folder)
            process.join(delay)
            ended = not process.is_alive()
            process.kill()
            process.join()
            kept = job.done(folder)
            seed += 1
            if ended:
                check(process, job)
                break
            own.append(
                {
                    "command": name,
                    "seed": seed - 1,
                    "after_seconds": delay,
                    "done": len(kept),
                    "total": job.total,
                    "lost": missing(before, kept),
                }
            )
        if not own:
            continue
        before = job.done(folder)
        finish(job, folder)
        lost, same = missing(before, job.done(folder)), job.outcome(folder) == expected
        for row in own:
            row["same"] = int(same)
        own[-1]["lost"] += lost
        rows += own
        print(f"{name}: {len(rows)} kills; lost {lost}, same {same}", flush=True)
    return rows


def missing(before: Done, after: Done) -> int:
    """Pieces of finished work that are gone or were done again."""
    return sum(after.get(piece) != mark for piece, mark in before.items())


def start(job: Job, folder: Path) -> Any:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"edgegen.commands.{name}" for name in KILLED])
    typed = [*job.arguments, *job.again(folder), f"output_dir={folder}"]
    process = context.Process(target=run, args=(job.command, typed, str(Path.cwd())))
    process.start()
    return process


def finish(job: Job, folder: Path) -> None:
    process = start(job, folder)
    process.join()
    check(process, job)
    if not is_finished(folder):
        raise SystemExit(f"{folder}: not finished")


def check(process: Any, job: Job) -> None:
    if process.exitcode:
        raise SystemExit(f"{job.command} failed:\n{Path(job.command + '.log').read_text()[-3000:]}")


def run(command: str, typed: list[str], folder: str) -> None:
    """The command itself, in a process of its own."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(1)
    with open(f"{command}.log", "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = [f"{command}.py", *typed]
    importlib.import_module(f"edgegen.commands.{command}").main()


# What is killed


def jobs() -> dict[str, Job]:
    evaluation = "model=emoji n=10 seeds=[0,1] steps=12 truth_steps=24 batch_size=2 guidance=3"
    training = "experiment=clockwork/emoji trainer.max_steps=12 checkpoint_every=2"
    training += " data.batch_size=2 module.teacher.steps=4 module.adaptor.width=8"
    return {
        "evaluation": Job(
            command="evaluate",
            arguments=[*evaluation.split(), "metrics=[paired]", "cache=null", "log_looks=false"],
            again=lambda folder: [],
            done=pictures,
            outcome=evaluated,
            kills=7,
            total=40,
        ),
        "search": Job(
            command="sweep",
            arguments=[
                f"hydra.searchpath=[file://{Path.cwd() / 'configs'}]",
                *("study=work", "sampler=tpe", "n_trials=16"),
            ],
            again=lambda folder: [],
            done=cells,
            outcome=searched,
            kills=7,
            total=16,
        ),
        "training": Job(
            command="train",
            arguments=training.split(),
            again=lambda folder: ["resume=true"] if checkpoint(folder).is_file() else [],
            done=steps,
            outcome=trained,
            kills=6,
            total=12,
        ),
    }


def pictures(folder: Path) -> Done:
    """Pictures and truths that belong to whole batches of two, by name and time of writing."""
    files = {*folder.glob("images/0*.png"), *folder.glob("truths/**/*.png")}
    whole = {}
    for file in files:
        if file.parent.name == "images":
            other = file.with_name(f"{int(file.stem) ^ 1:06d}.png")
            if other not in files:
                continue
        whole[str(file.relative_to(folder))] = file.stat().st_mtime_ns
    return whole


def evaluated(folder: Path) -> Any:
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = {name: value for name, value in metrics.items() if not name.startswith(TIMES)}
    return kept, digests(folder, "images/*.png"), digests(folder, "scores.csv")


def cells(folder: Path) -> Done:
    """Cells that came to their end, by name and time of beginning."""
    return {
        file.parent.name: read_record(file.parent)["start"]
        for file in folder.glob("cells/*/run.json")
        if is_finished(file.parent)
    }


def searched(folder: Path) -> Any:
    """Trials by place, whatever number they have after others that were given up."""
    rows = from_csv((folder / "results.csv").read_text())
    return sorted(sorted((key, str(value)) for key, value in row.items()) for row in rows)


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoints/last.ckpt"


def steps(folder: Path) -> Done:
    """Steps up to the last checkpoint: a later one has them too."""
    import torch

    if not checkpoint(folder).is_file():
        return {}
    saved = torch.load(checkpoint(folder), weights_only=True)["global_step"]
    return {str(step): step for step in range(saved)}


def trained(folder: Path) -> Any:
    import torch

    saved = torch.load(checkpoint(folder), weights_only=True)
    states = {name: value.numpy().tobytes() for name, value in saved["state_dict"].items()}
    return saved["global_step"], states, digests(folder, "model/*")


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob(pattern))
    }


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/kills").absolute())
