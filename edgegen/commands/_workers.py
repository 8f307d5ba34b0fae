"""Further processes that share the work of a sweep, and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def helped(count: int, work: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """While the block runs, `work(*arguments)` runs in `count` further processes.

    At the end of the block they are waited for, and after an error killed, wherever they are (a
    training or evaluation that they run would hold a SIGTERM back to its end). They also end when
    this process is killed. `work` is a function of a module, and its arguments can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_begin, args=(work, arguments), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _begin(work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
