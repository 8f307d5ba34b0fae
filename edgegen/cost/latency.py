"""How long things take, measured so that they can be compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

Meter = Callable[[], float]
"""A counter that only grows, read before and after: a clock in seconds, an energy counter in J."""


@dataclass(frozen=True)
class Reading:
    """One measured call: of which method, in which round, as which in the round, what it took."""

    round: int
    place: int
    method: str
    took: Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Quantiles over `n` measurements, in their own unit; `q25` and `q75` bound the IQR."""

    median: float
    q25: float
    q75: float
    p95: float
    n: int

    @property
    def iqr(self) -> float:
        return self.q75 - self.q25

    def metrics(self, name: str) -> dict[str, float]:
        """The median as metric `name`; with `_q25`, `_q75`, `_iqr`, `_p95` and `_n` behind it."""
        found = {"": self.median, "_q25": self.q25, "_q75": self.q75, "_iqr": self.iqr}
        found |= {"_p95": self.p95, "_n": self.n}
        return {f"{name}{end}": value for end, value in found.items()}


@dataclass(frozen=True)
class Ratio:
    """Median of `n` ratios with its 95 % interval; without one (None) where n is below 6."""

    value: float
    low: float | None
    high: float | None
    n: int


def interleaved(
    methods: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    work: Callable[[int], object],
    *,
    rounds: int,
    warmup: int = 1,
    seed: int = 0,
    meters: Mapping[str, Meter] | None = None,
    description: str | None = None,
) -> list[Reading]:
    """Measure the same work under several methods in turn, so that drift hits all alike.

    In every round each method does the work once, in an order drawn anew for each round: neither
    a machine that warms up or gets busy nor what ran just before favours one of them.

    Args:
        methods: name → what gives the context to work in. Entering and leaving it is not measured.
        work: what is measured, called with the number of the round (from 0).
        rounds: measurements a method.
        warmup: rounds before those, which are not kept.
        seed: of the orders.
        meters: name → what to read before and after; `{"seconds": time.perf_counter}` by default.
            On a GPU a clock must wait for the device to finish.
        description: of a progress bar; None shows none.

    Returns one reading a method and round, in the order of measuring.
    """
    meters = dict(meters or {"seconds": time.perf_counter})
    rng = np.random.default_rng(seed)
    names, readings = list(methods), []
    total = (warmup + rounds) * len(names)
    with tqdm(total=total, desc=description, unit="call", disable=description is None) as bar:
        for number in range(-warmup, rounds):
            for place, index in enumerate(rng.permutation(len(names))):
                name = names[index]
                with methods[name]():
                    before = {key: meter() for key, meter in meters.items()}
                    work(max(number, 0))
                    took = {key: meter() - before[key] for key, meter in meters.items()}
                if number >= 0:
                    readings.append(Reading(number, place, name, took))
                bar.update()
    return readings


def series(readings: Sequence[Reading], method: str, meter: str = "seconds") -> np.ndarray:
    """What the method took in each round: (rounds,) float64, by round."""
    found = sorted((each.round, each.took[meter]) for each in readings if each.method == method)
    return np.array([took for _, took in found], np.float64)


def timing(values: Sequence[float] | np.ndarray) -> Timing:
    """Median, quartiles and 95th percentile (linear interpolation) of one measurement or more."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError("timing takes one measurement or more, in one dimension")
    q25, median, q75, p95 = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75, 0.95)))
    return Timing(median, q25, q75, p95, len(values))


def paired_ratio(values: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> Ratio:
    """Median of `values / base`, round by round, with `median_interval`.

    Both are measurements (N,) of the same rounds, so that what slows a round down cancels out.
    """
    values, base = np.asarray(values, np.float64), np.asarray(base, np.float64)
    if values.shape != base.shape or values.ndim != 1 or len(values) == 0:
        raise ValueError(f"pairs are needed, got {values.shape} and {base.shape} measurements")
    ratios = values / base
    low, high = median_interval(ratios) or (None, None)
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


def median_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of a median between two order statistics, whatever the distribution.

    It holds the median with a probability of at least `level` (Conover 1999, section 3.2). None
    where there are too few values: for 95 %, fewer than 6.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n, tail, outside = len(ordered), 0.0, 0
    # `outside` values are cut off at each end: P(Binomial(n, 1/2) < outside) ≤ (1 − level) / 2.
    while outside < n:
        tail += math.comb(n, outside) / 2**n
        if tail > (1 - level) / 2:
            break
        outside += 1
    if outside == 0:
        return None
    return float(ordered[outside - 1]), float(ordered[n - outside])
