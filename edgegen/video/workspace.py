"""What an edit keeps beside its output until that is complete: frames, latents, how far it came."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

_SETTINGS, _SCHEDULE, _WRITTEN = "settings.json", "schedule.json", "written"


class Workspace:
    """A hidden folder beside the output. Every file in it is whole, or not there.

    Args:
        output: the file (or folder) to be made; `a.mp4` has the workspace `.a.mp4.edit`.
        settings: all that the result depends on, as JSON can hold it.
        resume: go on with what is there; else it is removed.
        schedule: by which the work is done; the first process notes it.
        rank: of this process; each has a progress and latents of its own.

    Raises:
        ValueError: what is there was made with other settings.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        resume: bool,
        schedule: str = "",
        rank: int = 0,
    ) -> None:
        self._rank = rank
        self.folder = _beside(output)
        wanted = json.loads(json.dumps(dict(settings)))
        found = _read_json(self.folder / _SETTINGS)
        if resume and found is not None and found != wanted:
            names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise ValueError(
                f"resume=true: {self.folder} was begun with other settings ({', '.join(names)}); "
                "give the same ones, or resume=false to begin anew"
            )
        if not (resume and found is not None) and self.folder.exists():
            # First of all: what is left after a kill is then nothing to go on with.
            (self.folder / _SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        (self.folder / "frames").mkdir(parents=True, exist_ok=True)
        if rank == 0:
            _write(self.folder / _SCHEDULE, json.dumps({"schedule": schedule}).encode())
        _write(self.folder / _SETTINGS, json.dumps(wanted).encode())

    @staticmethod
    def begun(output: Path) -> bool:
        """Whether work on this output was begun and not cleared up."""
        return (_beside(output) / _SETTINGS).is_file()

    @staticmethod
    def schedule(output: Path) -> str | None:
        """The schedule by which work on this output was begun; None where none was."""
        found = _read_json(_beside(output) / _SCHEDULE) if Workspace.begun(output) else None
        return None if found is None else str(found.get("schedule"))

    @staticmethod
    def written(output: Path) -> dict[str, Any] | None:
        """What `remove` was told of the output, where it was stopped; None where it was not."""
        return _read_json(_beside(output) / _WRITTEN) if Workspace.begun(output) else None

    @property
    def untouched(self) -> bool:
        """Whether there is nothing yet to go on with."""
        return not (self._progress.exists() or any((self.folder / "frames").iterdir()))

    def has(self, numbers: Sequence[int]) -> bool:
        """Whether all of these edited frames are there."""
        return all(self._frame(number).exists() for number in numbers)

    def keep(self, number: int, pixels: np.ndarray) -> None:
        """Keep an edited frame (H, W, 3) uint8, losslessly."""
        path = self._frame(number)
        temporary = path.with_suffix(".part")
        Image.fromarray(pixels).save(temporary, "png", compress_level=1)
        os.replace(temporary, path)

    def frames(self, count: int) -> Iterator[np.ndarray]:
        """The first `count` edited frames, read one by one."""
        for number in range(count):
            with Image.open(self._frame(number)) as image:
                yield np.asarray(image)

    @property
    def _progress(self) -> Path:
        return self.folder / f"progress{self._rank or ''}.json"

    def progress(self) -> dict[str, int]:
        """What `note` noted last; {} at first."""
        return _read_json(self._progress) or {}

    def note(self, **numbers: int) -> None:
        """Note how far the work came."""
        _write(self._progress, json.dumps(numbers).encode())

    def rows(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Rows:
        """A file of tensors of one shape, by number."""
        return Rows(self.folder / f"{name}.{self._rank}.latents", shape, dtype)

    def drop_rows(self) -> None:
        """Remove all of this process's files of tensors."""
        for path in self.folder.glob(f"*.{self._rank}.latents"):
            path.unlink()

    def remove(self, written: Mapping[str, Any] | None = None) -> None:
        """Remove all of it.

        Args:
            written: of the output if it is complete, what tells it from another; stopped on the
                way, this process leaves that to the next one, see `written`.
        """
        _write(self.folder / _WRITTEN, json.dumps(written).encode())
        kept = (_WRITTEN, _SCHEDULE, _SETTINGS)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in kept:
                path.unlink()
        for name in reversed(kept):
            (self.folder / name).unlink()
        self.folder.rmdir()

    def _frame(self, number: int) -> Path:
        return self.folder / "frames" / f"{number:06d}.png"


class Rows:
    """Tensors (C, h, w) in a file, found by their numbers; in memory only while in use."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self._bytes = int(np.prod(self.shape)) * dtype.itemsize
        path.touch()
        self._file: BinaryIO = open(path, "r+b", buffering=0)  # noqa: SIM115

    def write(self, numbers: Sequence[int], rows: torch.Tensor) -> None:
        """Keep `rows` (n, C, h, w) under n numbers."""
        for number, row in zip(numbers, rows.detach().cpu(), strict=True):
            self._file.seek(number * self._bytes)
            data = memoryview(row.contiguous().view(torch.uint8).numpy()).cast("B")
            while len(data):  # a write may take less than all of it
                data = data[self._file.write(data) :]

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        """The tensors (n, C, h, w) of these numbers, on the CPU."""
        rows = []
        for number in numbers:
            self._file.seek(number * self._bytes)
            data = bytearray(self._file.read(self._bytes))
            rows.append(torch.frombuffer(data, dtype=self.dtype).view(self.shape))
        return torch.stack(rows)

    def close(self) -> None:
        self._file.close()


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.edit")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
