"""Time by module: how long each takes with all inside it, and how long by itself."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Clock = Callable[[], float]


def wall_clock(device: str | torch.device = "cpu") -> Clock:
    """Seconds of wall time; on CUDA each reading first waits for the work that was queued."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


@dataclass
class Span:
    """Time of one module between two laps, in seconds.

    Attributes:
        runs: how often it ran.
        inclusive: with everything that ran inside it.
        exclusive: without the watched modules that ran inside it. Over all modules that were
            watched below one root, these add up to the root's inclusive time.
    """

    runs: int = 0
    inclusive: float = 0.0
    exclusive: float = 0.0


@dataclass(slots=True)
class _Running:
    inside: float = 0.0  # time of the watched modules that ran in it
    watching: float = 0.0  # what watching those took


@dataclass(frozen=True)
class WatchCost:
    """What a watched run of a module takes longer than an unwatched one, in seconds.

    `inner` falls between the two readings of the clock, `outer` beside them.
    """

    inner: float = 0.0
    outer: float = 0.0


class Stopwatch:
    """Times modules, by wrapping their `forward`s, while it is entered.

        with Stopwatch({"": unet, "mid_block": unet.mid_block}, time.perf_counter) as watch:
            unet(...)
            watch.lap()["mid_block"].inclusive

    Watching a run takes about a microsecond, which is taken off where `cost` says how much. (A pair
    of hooks takes three times that.) Nothing else may be counting. Hooks on a module count for the
    module around it.

    Args:
        modules: name → module. They may be nested; one that runs twice is summed.
        clock: seconds, see `wall_clock`.
        cost: of watching one run, see `watch_cost`.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], clock: Clock, cost: WatchCost | None = None
    ) -> None:
        self._modules = dict(modules)
        self._clock = clock
        self._cost = cost or WatchCost()
        self._running: list[_Running] = []
        self._spans: dict[str, Span] = {}
        self._before: list[tuple[nn.Module, Any]] = []  # their own `forward`s, mostly none

    def __enter__(self) -> Stopwatch:
        for name, module in self._modules.items():
            self._before.append((module, module.__dict__.get("forward")))
            module.forward = self._timed(name, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            module, forward = self._before.pop()
            if forward is None:
                del module.forward
            else:
                module.forward = forward

    def _timed(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        clock, running, cost = self._clock, self._running, self._cost

        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            span = self._spans.get(name)
            if span is None:
                span = self._spans[name] = Span()
            own = _Running()
            running.append(own)
            start = clock()
            try:
                return forward(*args, **kwargs)
            finally:
                spent = clock() - start - own.watching - cost.inner
                running.pop()
                span.runs += 1
                span.inclusive += spent
                span.exclusive += spent - own.inside
                if running:
                    around = running[-1]
                    around.inside += spent
                    around.watching += own.watching + cost.inner + cost.outer

        return timed

    def lap(self) -> dict[str, Span]:
        """Times since the last lap, by name, in the order in which the modules first ran.

        To be called between calls of the root. Modules that did not run are not there.
        """
        spans, self._spans = self._spans, {}
        return spans


def watch_cost(clock: Clock, runs: int = 200, rounds: int = 7) -> WatchCost:
    """Measure what watching a run takes: on a module that does nothing, the best of `rounds`."""
    module, nothing = nn.Identity(), torch.zeros(())

    def run() -> float:
        start = clock()
        for _ in range(runs):
            module(nothing)
        return (clock() - start) / runs

    bare, watched, within = [], [], []
    watch = Stopwatch({"": module}, clock)
    for _ in range(rounds):
        bare.append(run())
        with watch:
            watched.append(run())
        within.append(watch.lap()[""].inclusive / runs)
    # What a bare run takes is a call and the forward; only the forward lies between the readings.
    forward = min(_forward_time(module, nothing, clock, runs) for _ in range(rounds))
    inner = max(0.0, min(within) - forward)
    return WatchCost(inner, max(0.0, min(watched) - min(bare) - inner))


def _forward_time(module: nn.Module, value: torch.Tensor, clock: Clock, runs: int) -> float:
    start = clock()
    for _ in range(runs):
        module.forward(value)
    return (clock() - start) / runs
