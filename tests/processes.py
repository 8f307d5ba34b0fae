"""Commands in processes of their own, which need not import torch and the rest anew.

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
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_COMMANDS = ("compare", "edit", "evaluate", "sweep", "train")
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def start(command: str, *arguments: str, **environment: str) -> BaseProcess:
    """A process that runs a command in this working directory, on one thread and the CPU.

    What it says goes to `COMMAND.log` there, or to `COMMAND-RANK.log`.
    """
    context: Any = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        context.set_forkserver_preload([f"edgegen.commands.{name}" for name in _COMMANDS])
    process = context.Process(
        target=_run, args=(command, list(arguments), str(Path.cwd()), environment)
    )
    process.start()
    return process


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


def _run(command: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    import torch

    os.chdir(folder)
    for name in _ALONE:
        os.environ.pop(name, None)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    torch.set_num_threads(1)
    rank = f"-{environment['RANK']}" if "RANK" in environment else ""
    with open(f"{command}{rank}.log", "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = [str(Path(__file__).parents[1] / "scripts" / f"{command}.py"), *arguments]
    importlib.import_module(f"edgegen.commands.{command}").main()
