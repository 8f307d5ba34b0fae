"""One scheduler, many batches of frames that take turns: what it keeps of each one's steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from ..sampling.generate import noise_generator
from .workspace import Rows


class SchedulerStates:
    """The states of a scheduler by batch. Tensors of the samples' shape may be kept in a file.

    Args:
        scheduler: with its timesteps set; from now on its state is that of one batch at a time.
        first: number of the evaluation that a run begins with.

    Attributes:
        history: whether the scheduler keeps tensors of earlier steps for each batch.
        takes_generator: whether its `step` draws noise.
    """

    def __init__(self, scheduler: Any, first: int) -> None:
        self.scheduler = scheduler
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._fresh = _copied(vars(scheduler))
        self._kept: dict[Hashable, dict[str, Any]] = {}
        self._file: Rows | None = None
        self._places: dict[tuple[Hashable, str, int], list[int]] = {}
        self._taken = 0  # rows of the file
        self.history = self._probe(first)

    def begin(self) -> None:
        """A new run: nothing is kept of any batch."""
        self._kept.clear()
        self._places.clear()
        self._taken = 0

    @contextmanager
    def in_file(self, rows: Rows) -> Iterator[None]:
        """While open, tensors of the rows' shape are in that file and not in memory.

        Small ones that stay, laid between large ones that go, leave gaps in the heap that no large
        one fits into: a clip's frames took several times what was kept of them.
        """
        self._file = rows
        try:
            yield
        finally:
            self.begin()
            self._file = None

    def renew(self, evaluation: int) -> None:
        """The scheduler as before its evaluation of that number, with nothing behind it."""
        self._set(self._fresh)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(evaluation)

    def enter(self, key: Hashable, evaluation: int) -> None:
        """The scheduler as the batch `key` left it; as `renew` does where nothing is kept."""
        kept = self._kept.get(key)
        if kept is None:
            self.renew(evaluation)
        else:
            self._set({name: _mapped(self._read, value) for name, value in kept.items()})

    def leave(self, key: Hashable) -> None:
        """Keep the state for the batch `key`, where the scheduler has a history."""
        if self.history:
            state = _copied(vars(self.scheduler))
            self._kept[key] = {name: self._stored(key, name, v) for name, v in state.items()}

    def _set(self, state: dict[str, Any]) -> None:
        for name in [name for name in vars(self.scheduler) if name not in state]:
            delattr(self.scheduler, name)
        vars(self.scheduler).update(_copied(state))

    def _stored(self, key: Hashable, name: str, value: Any) -> Any:
        places = count()

        def store(each: Any) -> Any:
            place = (key, name, next(places))
            file = self._file
            if file is None or not _fits(each, file):
                return each
            if place not in self._places:
                self._places[place] = list(range(self._taken, self._taken + len(each)))
                self._taken += len(each)
            file.write(self._places[place], each.to(file.dtype))
            return _InFile(self._places[place], each.dtype, each.device)

        return _mapped(store, value)

    def _read(self, value: Any) -> Any:
        if not isinstance(value, _InFile) or self._file is None:
            return value
        return self._file.read(value.numbers).to(value.device, value.dtype)

    def _probe(self, first: int) -> bool:
        """Whether a step leaves tensors of the sample's shape behind in the scheduler."""
        self.renew(first)
        sample, time = torch.zeros(1, 1, 1, 1), self.scheduler.timesteps[first]
        extra = {"generator": noise_generator(0, 0)} if self.takes_generator else {}
        self.scheduler.scale_model_input(sample, time)
        self.scheduler.step(sample, time, sample, **extra)
        found: list[bool] = []
        for value in vars(self.scheduler).values():
            _mapped(lambda each: found.append(torch.is_tensor(each) and each.ndim == 4), value)
        return any(found)


@dataclass(frozen=True)
class _InFile:
    """Stands for a tensor whose samples are rows of the file."""

    numbers: list[int]
    dtype: torch.dtype
    device: torch.device


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    # Multistep schedulers write into their lists.
    return {k: list(v) if isinstance(v, list) else v for k, v in state.items()}


def _fits(value: Any, file: Rows) -> bool:
    """Whether it is a tensor whose samples are rows of the file, and lose no bit there."""
    return (
        torch.is_tensor(value)
        and tuple(value.shape[1:]) == file.shape
        and value.is_floating_point()
        and value.dtype.itemsize <= file.dtype.itemsize
    )


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [change(each) for each in value]
    return change(value)
