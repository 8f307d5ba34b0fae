"""Files that are either whole or not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes, *, sync: bool = True) -> Path:
    """Write `content` (text as UTF-8) to `path`, so that a reader or a crash never sees half of it.

    The bytes go into a temporary file beside `path`, which then takes its name. Missing parent
    folders are made. With `sync` it also holds when the power fails, at some milliseconds a file.
    Returns the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
