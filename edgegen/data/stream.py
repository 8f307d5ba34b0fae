"""An endless training stream that is a pure function of (seed, samples seen).

Every sample has a global number. What it holds depends on that number and the seed alone, never on
the worker, the rank, the batch size or the moment, so a run that stops after `n` samples goes on
with sample `n` exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The generator of sample `number`: counter-based, so no earlier sample has to be drawn."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, number]))


class Stream(Dataset):
    """Shuffled passes over `items`, each drawn through `view(item, rng)`.

    Args:
        items: what a pass goes over; every pass has its own order.
        view: makes a sample of an item; all its randomness comes from `rng`.
        seed: of order and views.
    """

    def __init__(
        self, items: list[int], view: Callable[[int, np.random.Generator], Any], seed: int
    ) -> None:
        if not items:
            raise ValueError("the stream has no items: the data filter leaves nothing")
        self.items, self.view, self.seed = items, view, seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> Any:
        which, position = divmod(number, len(self.items))
        if which != self._pass:
            order = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 1, which, 0]))
            self._pass, self._order = which, order.permutation(len(self.items))
        return self.view(self.items[self._order[position]], sample_rng(self.seed, number))


class StreamSampler(Sampler[int]):
    """Numbers `start + rank, start + rank + world, …` without end."""

    def __init__(self, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[int]:
        number = self.start + self.rank
        while True:
            yield number
            number += self.world
