"""Which weights a pipeline was made of, for the record of a run."""

from __future__ import annotations

from pathlib import Path

from ..assets import file_sha256
from .checkpoints import WEIGHT_ENDINGS


def weight_checksums(path: str | Path) -> dict[str, str]:
    """File name (relative to a folder) -> sha256, of the weights in a folder or of one file."""
    path = Path(path)
    if path.is_file():
        return {path.name: file_sha256(path)}
    files = (file for file in sorted(path.rglob("*")) if file.suffix in WEIGHT_ENDINGS)
    return {file.relative_to(path).as_posix(): file_sha256(file) for file in files}
