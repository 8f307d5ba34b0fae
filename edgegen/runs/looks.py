"""The list of looks at test data: it is to be scored once, so every look is written down."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .environment import git_state
from .locks import hold

_ROOT = Path(__file__).resolve().parents[2]
LOOKS = _ROOT / "experiments" / "test_looks.csv"


def log_look(what: Mapping[str, Any], path: Path = LOOKS) -> bool:
    """Append who looked, when, with which commit and at what to the CSV file at `path`.

    Args:
        what: column to value, the same columns at every call.

    Returns whether it was written: where the code is no git checkout there is no list to keep.
    """
    state = git_state()
    if state["sha"] is None:
        return False
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": _who(),
        "commit": state["sha"][:12] + ("+changes" if state["dirty"] else ""),
        **what,
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    with hold(path), open(path, "a", encoding="utf-8", newline="") as file:
        if path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
        file.write(text.getvalue())
    return True


def _who() -> str:
    try:
        asked = subprocess.run(
            ["git", "-C", str(_ROOT), "config", "user.name"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()
