"""Tensors that take long to make, in files of so many rows: a stopped run goes on with the next."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

Rows = dict[str, Tensor]


def shards(
    folder: Path | None, count: int, size: int, make: Callable[[int], Rows], description: str
) -> list[Rows]:
    """Rows 0 … `count` − 1 in shards of `size`, read from `folder` or made and kept there.

    Args:
        folder: made where it is missing; None keeps the rows in memory alone. Processes that share
            it take shards in an order of their own and pass over what another has made.
        make: number of a row to its tensors, of the same names and shapes for every row.
        description: for the progress bar, which appears where something is missing.

    Returns:
        One dictionary of (rows, …) tensors a shard; those on disk are mapped, not read at once.
    """
    starts = range(0, count, size)
    paths = [None if folder is None else folder / f"{start:07d}.safetensors" for start in starts]
    missing = [place for place, path in enumerate(paths) if path is None or not path.exists()]
    if folder is not None:  # processes that need the same ones then share the work
        random.Random(os.getpid()).shuffle(missing)
    found: dict[int, Rows] = {}
    rest = sum(min(size, count - starts[place]) for place in missing)
    with tqdm(total=rest, desc=description, disable=rest == 0) as bar:
        for place in missing:
            path, numbers = paths[place], range(starts[place], min(starts[place] + size, count))
            if path is not None and path.exists():
                bar.update(len(numbers))
                continue
            rows = []
            for number in numbers:
                rows.append(make(number))
                bar.update()
            made = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            if path is None:
                found[place] = made
            else:
                _write(path, made)
    return [found[place] if path is None else load_file(path) for place, path in enumerate(paths)]


def _write(path: Path, tensors: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary)
    temporary.replace(path)
