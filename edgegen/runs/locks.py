"""Locks between processes that the system lets go of, however a process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one worker at a time, and nothing to lock against
    fcntl = None  # type: ignore[assignment]


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`, which is made; gives whether it could be had.

    Args:
        wait: until it is free; else it is not had where somebody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        had = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                had = False
        yield had


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file `path`. A missing file is held by none."""
    if not path.is_file():
        return False
    with hold(path, wait=False) as had:
        return not had
