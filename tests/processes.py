"""Commands and functions in processes of their own, which need not import torch and the rest anew.

They are forked off a server that has imported everything and computed nothing: as good as
`python scripts/NAME.py …` to kill or to join by `torch.distributed`, at none of its seconds of
start-up. On systems without such a server they start as anywhere.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_COMMANDS = ("compare", "edit", "evaluate", "sweep", "train")
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def start(
    command: str,
    *arguments: str,
    prepare: Callable[[], None] | None = None,
    **environment: str,
) -> BaseProcess:
    """A process that runs a command in this working directory, on one thread and the CPU.

    What it says goes to `COMMAND.log` there, or to `COMMAND-RANK.log`.

    Args:
        prepare: a function at the top of a module, called there before the command.
    """
    return fork(_run, command, list(arguments), str(Path.cwd()), environment, prepare)


def fork(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls a function at the top of a module."""
    context: Any = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        modules = [f"edgegen.commands.{name}" for name in _COMMANDS]
        context.set_forkserver_preload([*modules, "optuna"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def call(function: Callable[..., None], *arguments: Any, log: Path, timeout: float = 300) -> None:
    """A function at the top of a module, in a process of its own, which must come to its end."""
    process = fork(_call, function, arguments, str(log))
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, log.read_text()[-3000:]


def run_two(command: str, *arguments: str, trainer: str = "ddp", timeout: float = 300) -> None:
    """A command by two processes that share the work, as `torchrun` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    both = (f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.devices=2")
    processes = [
        start(command, *arguments, *both, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"
    ]
    for rank, process in enumerate(processes):
        process.join(timeout)
        said = Path(f"{command}-{rank}.log").read_text()
        if process.exitcode != 0:
            for each in processes:
                each.kill()
        assert process.exitcode == 0, said[-3000:]


def _run(
    command: str,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.chdir(folder)
    for name in _ALONE:
        os.environ.pop(name, None)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    rank = f"-{environment['RANK']}" if "RANK" in environment else ""
    _be_one_thread(f"{command}{rank}.log")
    if prepare is not None:
        prepare()
    sys.argv = [str(Path(__file__).parents[1] / "scripts" / f"{command}.py"), *arguments]
    importlib.import_module(f"edgegen.commands.{command}").main()


def _call(function: Callable[..., None], arguments: Sequence[Any], log: str) -> None:
    _be_one_thread(log)
    function(*arguments)


def _be_one_thread(path: str) -> None:
    import torch

    torch.set_num_threads(1)
    with open(path, "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
