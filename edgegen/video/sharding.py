"""Several processes at one clip: each makes the anchors, and its share of the other frames.

Processes are started by torchrun or `accelerate launch`, and see one file system. The anchors are
few; making them everywhere is cheaper than sending keys and values around, and needs no fast link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

_T = TypeVar("_T")
_PATIENCE = timedelta(days=7)  # for the slowest process: a clip may take hours


@dataclass(frozen=True)
class Shard:
    """The place of this process among `count`: `rank`, from 0."""

    rank: int = 0
    count: int = 1

    def own(self, chunks: Sequence[_T]) -> list[_T]:
        """What of the chunks falls to this process."""
        return list(chunks[self.rank :: self.count])

    def agreed(self, value: _T) -> _T:
        """The first process's value, which counts for all."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def shard() -> Iterator[Shard]:
    """This process's shard: of the process group there is, or of one that torchrun asks for."""
    if not dist.is_available():
        yield Shard()
        return
    begun = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if begun:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        found = dist.is_initialized()
        yield Shard(dist.get_rank(), dist.get_world_size()) if found else Shard()
    finally:
        if begun:
            dist.destroy_process_group()
