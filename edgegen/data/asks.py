"""Asks of a model, in batches of one fixed shape."""

from __future__ import annotations

from torch.utils.data import Dataset


class AskBatches(Dataset[list[int]]):
    """The places 0 … `count` − 1 in batches of `size`, the last filled up by repeating its last.

    A picture's bits depend on the shape of its batch. Since that is always the same, and batches
    go to processes whole, they depend neither on the number of pictures nor on that of processes.

    Raises ValueError for no asks or an empty batch.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"{count} asks in batches of {size}: both must be 1 or more")
        self.count, self.size = count, size

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __getitem__(self, number: int) -> list[int]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        start = number * self.size
        return [min(place, self.count - 1) for place in range(start, start + self.size)]

    def share(self, rank: int, world: int) -> range:
        """The batches that process `rank` of `world` makes."""
        return range(rank, len(self), world)
