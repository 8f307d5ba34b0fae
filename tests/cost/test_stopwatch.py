from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgegen.cost.stopwatch import Stopwatch, WatchCost, wall_clock, watch_cost


class FakeClock:
    """Seconds that pass when told to; reading it takes `reading`, after the value is taken."""

    def __init__(self, reading: float = 0.0) -> None:
        self.time = 0.0
        self.reading = reading

    def __call__(self) -> float:
        now = self.time
        self.time += self.reading
        return now


class Works(nn.Module):
    """Takes `seconds` by itself, then runs its children in turn, `times` over."""

    def __init__(
        self, clock: FakeClock, seconds: float, *children: nn.Module, times: int = 1
    ) -> None:
        super().__init__()
        self.clock, self.seconds, self.times = clock, seconds, times
        for index, child in enumerate(children):
            self.add_module(f"child{index}", child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.time += self.seconds
        for _ in range(self.times):
            for child in self.children():
                x = child(x)
        return x


def family(clock: FakeClock) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Root 1 s; twice in turn: a leaf of 2 s and a parent of 3 s with a leaf of 4 s."""
    root = Works(clock, 1.0, Works(clock, 2.0), Works(clock, 3.0, Works(clock, 4.0)), times=2)
    names = {"child0": "leaf", "child1": "parent", "child1.child0": "inner", "": "root"}
    return root, {names[path]: module for path, module in root.named_modules()}


@pytest.mark.parametrize("reading", [0.0, 0.25])
def test_exclusive_and_inclusive(reading: float) -> None:
    """Each reading costs `reading`: one falls inside a module's interval, one outside."""
    clock = FakeClock(reading)
    root, modules = family(clock)
    with Stopwatch(modules, clock, WatchCost(inner=reading, outer=reading)) as watch:
        root(torch.zeros(1))
        spans = watch.lap()
    assert list(spans) == ["root", "leaf", "parent", "inner"]  # in the order of their first runs
    found = {name: (span.runs, span.inclusive, span.exclusive) for name, span in spans.items()}
    assert found == {
        "root": (1, 19.0, 1.0),
        "leaf": (2, 4.0, 4.0),
        "parent": (2, 14.0, 6.0),
        "inner": (2, 8.0, 8.0),
    }
    assert sum(span.exclusive for span in spans.values()) == 19.0


def test_what_is_not_watched_falls_to_the_module_around() -> None:
    clock = FakeClock()
    root, modules = family(clock)
    del modules["parent"]
    with Stopwatch(modules, clock) as watch:
        root(torch.zeros(1))
        spans = watch.lap()
    assert spans["root"].exclusive == 1.0 + 2 * 3.0
    assert spans["inner"].exclusive == 8.0


def test_laps_start_anew() -> None:
    clock = FakeClock()
    root, modules = family(clock)
    with Stopwatch(modules, clock) as watch:
        root(torch.zeros(1))
        first = watch.lap()
        assert watch.lap() == {}
        root(torch.zeros(1))
        assert watch.lap() == first


def test_nothing_is_left_behind() -> None:
    clock = FakeClock()
    root, modules = family(clock)

    def replaced(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    modules["leaf"].forward = replaced
    watch = Stopwatch(modules, clock)
    with pytest.raises(RuntimeError, match="broken"), watch:
        root(torch.zeros(1))
    assert modules["leaf"].forward is replaced
    assert "forward" not in root.__dict__
    assert "forward" not in modules["parent"].__dict__
    del modules["leaf"].forward
    watch.lap()
    with watch:
        root(torch.zeros(1))
    assert watch.lap()["root"].inclusive == 19.0


def test_signatures_stay() -> None:
    """diffusers and transformers look at the arguments of `forward`."""

    class Named(nn.Module):
        def forward(self, sample: int, timestep: int = 3) -> int:
            return sample + timestep

    import inspect

    module = Named()
    with Stopwatch({"": module}, time.perf_counter):
        assert list(inspect.signature(module.forward).parameters) == ["sample", "timestep"]
        assert module(1, timestep=5) == 6


def test_watching_is_cheap_and_its_cost_known() -> None:
    clock: Callable[[], float] = wall_clock("cpu")
    cost = watch_cost(clock)
    assert 0 <= cost.inner < 1e-4
    assert 0 < cost.outer < 1e-4
