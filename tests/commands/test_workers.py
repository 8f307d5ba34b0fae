"""Processes that help, and end with the block that they help."""

import signal
import time
from pathlib import Path

import pytest

from edgegen.commands._workers import helped


def deaf(folder: Path) -> None:
    """Works on through a SIGTERM, as an evaluation under Lightning does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        (folder / "alive").write_text(str(time.time()))
        time.sleep(0.05)


def note(folder: Path) -> None:
    (folder / "done").touch()


def test_after_an_error_they_are_ended_wherever_they_are(tmp_path):
    def fail() -> None:
        with helped(1, deaf, tmp_path):
            for _ in range(600):
                if (tmp_path / "alive").exists():
                    raise RuntimeError("stop")
                time.sleep(0.1)

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    time.sleep(0.3)
    last = (tmp_path / "alive").read_text()
    time.sleep(0.5)
    assert (tmp_path / "alive").read_text() == last


def test_at_the_end_they_are_waited_for(tmp_path):
    with helped(1, note, tmp_path):
        pass
    assert (tmp_path / "done").exists()
