"""The record of a run: what was asked, on what code and data, how it ended, what came out."""

from __future__ import annotations

import json
import math
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from .atomic import write_atomic
from .environment import code_version, git_state, machine, package_versions, sha256
from .identity import input_files

_METRIC = re.compile(r"[a-z0-9_]+(/[a-z0-9_.\-]+)+")


class Killed(BaseException):
    """The process was asked to end (SIGTERM): not an error, and never swallowed as one."""


class Run:
    """A folder that holds one run's results and its record.

        with Run("outputs/mine", config={"steps": 8}) as run:
            run.log({"quality/psnr_db": 31.2})

    Nothing is written until something is kept: the first use of `dir`, `log`, `note`, `info` or
    `used_file` makes the folder and marks the run as running, so settings that are refused before
    leave nothing behind, and a finished run's folder is not spoilt by a mistyped second one.

    Files, each written atomically: `metrics.json` (one flat object, name to number or null),
    `config.yaml`, `overrides.txt` and `run.json`, whose `status` is `running`, `finished`,
    `failed` or `killed`. Metrics of an earlier run in the same folder are removed on start.
    In a process of a distributed run other than the first, nothing is written.

    Args:
        folder: where the run is kept.
        config: the settings, plain and resolved; a `seed` or `seeds` in it is copied to `run.json`,
            with the checksums of the files and folders that it names (`identity.input_files`).
        overrides: the settings as typed, one a line of `overrides.txt`.
        command: the name of the command, if any.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        overrides: Iterable[str] = (),
        command: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.metrics: dict[str, float | int | None] = {}
        self._config = dict(config or {})
        self._overrides = list(overrides)
        self._started = False
        self._lock: IO[bytes] | None = None
        self._writes = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
        self._record: dict[str, Any] = {"command": command, "status": "running"}

    @property
    def dir(self) -> Path:
        """The folder, made and marked as belonging to a running run on first use."""
        self.start()
        return self.folder

    def start(self) -> None:
        """Make the folder and write the record. Calling it again changes nothing.

        Raises ValueError where another run, in this process or another, is writing there.
        """
        if self._started:
            return
        if self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder)
        self._started = True
        seeds = self._config.get("seeds", self._config.get("seed"))
        if seeds is not None and not isinstance(seeds, list):
            seeds = [seeds]
        self._record.update(
            start=_now(),
            end=None,
            pid=os.getpid(),
            seeds=seeds,
            device=None,
            git=git_state(),
            code=code_version(),
            versions=package_versions(),
            machine=machine(),
            inputs=self._inputs() if self._writes else {},
            files={},
            null_metrics={},
        )
        if self._writes:
            (self.folder / "metrics.json").unlink(missing_ok=True)
            settings = yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
            write_atomic(self.folder / "config.yaml", settings)
            text = "".join(f"{override}\n" for override in self._overrides)
            write_atomic(self.folder / "overrides.txt", text.encode("utf-8", "surrogateescape"))
        self._write_record()

    def _inputs(self) -> dict[str, str]:
        """Checksums of what the settings name, but for what the run writes and what it collects."""
        here = self.folder.resolve()
        given = {key: value for key, value in self._config.items() if key not in ("runs", "output")}
        return input_files(given, lambda path: not path.resolve().is_relative_to(here))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Keep numbers under `group/name`, in lower case, with the unit in the name.

        Values may be Python, numpy or one-element torch numbers. NaN and infinities are kept as
        null with that as the reason. Raises ValueError for a name or value of another kind.
        """
        checked: dict[str, float | int | None] = {}
        reasons: dict[str, str] = {}
        for name, value in metrics.items():
            _check_name(name)
            number = _number(name, value)
            if not math.isfinite(number):
                reasons[name] = f"the value was {number}"
            checked[name] = None if name in reasons else number
        self.start()
        self.metrics.update(checked)
        for name in checked:
            self._record["null_metrics"].pop(name, None)
        self._record["null_metrics"].update(reasons)
        self._write_metrics()
        if reasons:
            self._write_record()

    def note(self, name: str, reason: str) -> None:
        """Keep a metric that could not be computed: null, with the reason in `run.json`."""
        _check_name(name)
        self.start()
        self.metrics[name] = None
        self._record["null_metrics"][name] = reason
        self._write_metrics()
        self._write_record()

    def info(self, **entries: Any) -> None:
        """Add entries that JSON can hold to `run.json`, such as `device` or `seeds`."""
        self.start()
        self._record.update(entries)
        self._write_record()

    def used_file(self, path: str | Path) -> str:
        """Keep the SHA-256 of a weight or data file the result depends on, and return it.

        Raises FileNotFoundError where there is no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        digest = sha256(path)
        self.start()
        entry = {"sha256": digest, "bytes": path.stat().st_size}
        if self._record["files"].get(str(path)) != entry:
            self._record["files"][str(path)] = entry
            self._write_record()
        return digest

    def finish(self) -> None:
        """Mark the run as finished. `metrics.json` is there from now on, if only `{}`."""
        self.start()
        self._write_metrics()
        self._end("finished")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif self._started:
            self._record["error"] = " ".join(f"{type(error).__name__}: {error}".split())
            self._record["traceback"] = "".join(traceback.format_exception(error)).splitlines()
            self._end("killed" if _was_killed(error) else "failed")

    def _end(self, status: str) -> None:
        end = _now()
        start = datetime.fromisoformat(self._record["start"])
        seconds = (datetime.fromisoformat(end) - start).total_seconds()
        self._record.update(status=status, end=end, seconds=round(seconds, 3), machine=machine())
        self._write_record()
        if self._lock is not None:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _write_metrics(self) -> None:
        if self._writes:
            write_atomic(self.folder / "metrics.json", _json(dict(sorted(self.metrics.items()))))

    def _write_record(self) -> None:
        if self._writes:
            write_atomic(self.folder / "run.json", _json(self._record))


def read_record(folder: str | Path) -> dict[str, Any]:
    """The `run.json` of a folder, or an empty dict where there is none that can be read."""
    try:
        record = json.loads((Path(folder) / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_finished(folder: str | Path) -> bool:
    """Whether the folder holds a run that came to its end. A killed or failed one does not."""
    return read_record(folder).get("status") == "finished"


def _lock(folder: Path) -> IO[bytes] | None:
    """Held while a run is writing; the system lets go of it however the process ends."""
    file = open(folder / ".lock", "wb")  # noqa: SIM115
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"output_dir={folder}: another run is writing there") from None
    except (ImportError, OSError):  # Windows, and file systems without locks
        pass
    return file


def _was_killed(error: BaseException | None) -> bool:
    # Lightning turns an interruption into SystemExit and keeps it only as the context.
    while error is not None:
        if isinstance(error, KeyboardInterrupt | Killed):
            return True
        error = error.__cause__ or error.__context__ if isinstance(error, SystemExit) else None
    return False


def _check_name(name: str) -> None:
    if not _METRIC.fullmatch(name):
        raise ValueError(f"metric name {name!r}: must be group/name in lower case")


def _number(name: str, value: Any) -> float | int:
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"metric {name!r}: must be one number, got {value!r}") from error
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int | float):
        raise ValueError(f"metric {name!r}: must be a number, got {value!r}")
    return value


def _json(content: Any) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace")  # arguments may hold bytes that are no text


def _now() -> str:
    return datetime.now(UTC).astimezone().isoformat(timespec="milliseconds")
