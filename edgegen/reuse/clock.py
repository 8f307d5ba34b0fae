"""When to run in full: the clock of a reuse method.

Steps are evaluations of the UNet, of which second-order schedulers make two a step. A clock counts
them from 0; the lists that users write count from 1, as the papers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Where the i-th of n full passes lies in a run, as a share of it: g(i/n).
_SPREADS = {
    "early": lambda u: u * u,
    "late": lambda u: 2 * u - u * u,
    "ends": lambda u: 3 * u * u - 2 * u * u * u,
}
_SPAN = "span"
_PLACES = (*_SPREADS, _SPAN)
ALLOWED = (
    "a whole number N from 1 (one full pass every N steps), {full: [1, 3, …]}, "
    "{reuse: [2, 4, …]}, {early: N}, {late: N}, {ends: N}, {span: N} or "
    "{drift: threshold}"
)


@dataclass(frozen=True)
class Moment:
    """What is known before an evaluation.

    Attributes:
        step: its number, from 0, of `total` in this run.
        since: steps since the last full pass; 1 just after it.
        drift: how far the features before the cut will have moved since the last full pass, see
            `Drift`; None where that is not known or not asked for.
    """

    step: int
    total: int
    since: int = 1
    drift: float | None = None


class Clock(Protocol):
    """Decides between a full pass and reuse. Step 0 runs in full in any case."""

    def full(self, moment: Moment) -> bool:
        """Whether the evaluation to come is a full pass."""


@dataclass(frozen=True)
class Every:
    """Clock N of the papers: one full pass every `n` ≥ 1 steps."""

    n: int

    def __post_init__(self) -> None:
        _check_whole("clock", self.n)

    def full(self, moment: Moment) -> bool:
        return moment.step % self.n == 0


@dataclass(frozen=True)
class Full:
    """Full passes at the listed steps only, counted from 1; the first must be among them."""

    steps: frozenset[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _step_set("full", self.steps))
        if 1 not in self.steps:
            raise ValueError("clock full=[…]: must hold step 1, which has nothing to reuse")

    def full(self, moment: Moment) -> bool:
        return moment.step + 1 in self.steps


@dataclass(frozen=True)
class Reused:
    """Reuse at the listed steps only, counted from 1; the first cannot be among them."""

    steps: frozenset[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _step_set("reuse", self.steps))
        if 1 in self.steps:
            raise ValueError("clock reuse=[…]: cannot hold step 1, which has nothing to reuse")

    def full(self, moment: Moment) -> bool:
        return moment.step + 1 not in self.steps


@dataclass(frozen=True)
class Spread:
    """As many full passes as clock `n` makes, but elsewhere.

    Denser somewhere (`early`, `late` or both `ends`): the i-th of m full passes is step
    ⌊total · g(i/m)⌋, or the next one that is free. Or evenly from the first step to the last
    (`span`): the i-th, of 0 to m − 1, is the step nearest to i (total − 1) / (m − 1), the earlier
    of two; one alone is the first step.
    """

    where: str
    n: int = 2

    def __post_init__(self) -> None:
        if self.where not in _PLACES:
            raise ValueError(f"clock '{self.where}': allowed are {ALLOWED}")
        _check_whole(f"clock {self.where}", self.n)

    def full(self, moment: Moment) -> bool:
        return moment.step in self.positions(moment.total)

    def positions(self, total: int) -> list[int]:
        """Steps (from 0) of the full passes in a run of `total`, rising."""
        passes = -(-total // self.n)
        if self.where == _SPAN:
            gap = (total - 1) / max(passes - 1, 1)
            return [math.ceil(i * gap - 0.5 - 1e-9) for i in range(passes)]
        found: list[int] = []
        for i in range(passes):
            wanted = int(total * _SPREADS[self.where](i / passes) + 1e-9)
            after = found[-1] + 1 if found else 0
            found.append(min(max(wanted, after), total - passes + i))
        return found


@dataclass(frozen=True)
class Drift:
    """Error-driven: a full pass when the features before the cut have moved too far.

    Moves are relative, ‖r_in(t) − r_in(t+1)‖ / ‖r_in(t+1)‖, and add up from the last full pass on.
    The decision falls once a step and before it, so the step to come counts as far as the last one
    moved. While that is unknown (the first two steps) it runs in full. Norms are taken over the
    whole batch, both guidance branches included: what else is drawn at once may change a picture.

    Args:
        threshold: the sum that calls for a full pass, above 0.
        longest: steps that may be reused in a row.
    """

    threshold: float
    longest: int = 8

    def __post_init__(self) -> None:
        number = self.threshold
        if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
            raise ValueError(f"clock drift={number}: must be a number above 0")
        _check_whole("clock drift, longest", self.longest)

    def full(self, moment: Moment) -> bool:
        if moment.drift is None or moment.since > self.longest:
            return True
        return moment.drift > self.threshold


def planned(clock: Clock, total: int) -> list[bool]:
    """For each of `total` evaluations, whether it is a full one; for clocks other than by drift."""
    passes = [True]
    for step in range(1, total):
        since = 1 + passes[::-1].index(True)
        passes.append(clock.full(Moment(step, total, since)))
    return passes


def parse_clock(value: Any) -> Clock:
    """A clock from what a user or a config says: see `ALLOWED`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str) and value in _PLACES:
        return Spread(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Every(value)
    if isinstance(value, Mapping):
        return _parse_mapping(dict(value))
    if hasattr(value, "full"):
        return value
    raise ValueError(f"clock={value}: must be {ALLOWED}")


def _parse_mapping(value: dict[str, Any]) -> Clock:
    longest = value.pop("longest", None) if "drift" in value else None
    if len(value) == 1:
        (name, setting), *_ = value.items()
        if name in ("full", "reuse"):
            return Full(setting) if name == "full" else Reused(setting)
        if name in _PLACES:
            return Spread(name, setting)
        if name == "drift":
            return Drift(setting) if longest is None else Drift(setting, longest)
    raise ValueError(f"clock={value}: must be {ALLOWED}")


def _step_set(name: str, steps: Any) -> frozenset[int]:
    if not isinstance(steps, Sequence | frozenset | set) or isinstance(steps, str):
        raise ValueError(f"clock {name}={steps}: must be a list of steps, counted from 1")
    for step in steps:
        _check_whole(f"a step of clock {name}", step)
    return frozenset(steps)


def _check_whole(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number}: must be a whole number of at least 1")
