"""The space that a sweep searches: named axes, each of which sets one setting or several."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEYS = {
    "categorical": {"type", "choices"},
    "int": {"type", "low", "high", "step", "log"},
    "float": {"type", "low", "high", "step", "log"},
}
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Choices:
    """An axis of named choices, each with the settings that it stands for."""

    name: str
    settings: Mapping[Scalar, Mapping[str, Any]]

    def suggest(self, trial: Any) -> Scalar:
        """The choice of an optuna trial."""
        return trial.suggest_categorical(self.name, list(self.settings))

    def grid(self) -> list[Scalar]:
        """All choices, in the order given."""
        return list(self.settings)

    def first(self) -> Scalar:
        """One choice that is allowed."""
        return next(iter(self.settings))

    def of(self, value: Scalar) -> dict[str, Any]:
        """The settings that a choice stands for."""
        return dict(self.settings[value])


@dataclass(frozen=True)
class Numbers:
    """An axis of whole or real numbers between two ends, both included."""

    name: str
    low: int | float
    high: int | float
    step: int | float | None
    log: bool
    whole: bool

    def suggest(self, trial: Any) -> int | float:
        """The number of an optuna trial."""
        if self.whole:
            step = 1 if self.step is None else self.step
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def grid(self) -> list[Scalar]:
        """`low`, `low + step`, … up to `high`. Raises ValueError for real numbers without step."""
        step = 1 if self.step is None and self.whole else self.step
        if step is None:
            raise ValueError(f"space.{self.name}: a grid of real numbers needs a step, or choices")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        if self.whole:
            return [self.low + i * step for i in range(count)]
        return [round(self.low + i * step, 12) for i in range(count)]

    def first(self) -> Scalar:
        """One number that is allowed."""
        return self.low

    def of(self, value: Scalar) -> dict[str, Any]:
        """The setting that a number stands for."""
        return {self.name: value}


Axis = Choices | Numbers


def read_axes(space: Mapping[str, Any]) -> list[Axis]:
    """The axes that a config describes.

    Args:
        space: axis name to one of
            `{type: categorical, choices: [a, b]}`: the axis is named after the setting;
            `{type: categorical, choices: {name: {setting: value, …}, …}}`: choices of several
            settings at once, such as a method with its options;
            `{type: int, low:, high:, step:, log:}` or `{type: float, …}`; `step` and `log` may be
            left out, and exclude each other.

    Raises ValueError, naming the axis and what is allowed.
    """
    if not space:
        raise ValueError("space: is empty; give at least one axis")
    return [_axis(str(name), given) for name, given in space.items()]


def grid_points(axes: Sequence[Axis]) -> list[dict[str, Scalar]]:
    """Every combination of the axes' values, the last axis changing fastest."""
    products = itertools.product(*(axis.grid() for axis in axes))
    return [dict(zip((axis.name for axis in axes), each, strict=True)) for each in products]


def point_settings(axes: Sequence[Axis], point: Mapping[str, Scalar]) -> dict[str, Any]:
    """The settings that a point of the space stands for."""
    found: dict[str, Any] = {}
    for axis in axes:
        found |= axis.of(point[axis.name])
    return found


def _axis(name: str, given: Any) -> Axis:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind not in _KEYS:
        raise ValueError(f"space.{name}: type={kind}: must be one of {', '.join(_KEYS)}")
    if unknown := sorted(set(given) - _KEYS[kind]):
        allowed = ", ".join(sorted(_KEYS[kind]))
        raise ValueError(f"space.{name}: unknown key {unknown[0]!r}; allowed: {allowed}")
    return _choices(name, given.get("choices")) if kind == "categorical" else _numbers(name, given)


def _choices(name: str, given: Any) -> Choices:
    if isinstance(given, Mapping) and given:
        if bad := [key for key, value in given.items() if not isinstance(value, Mapping)]:
            raise ValueError(f"space.{name}: choice {bad[0]!r} must be a mapping of settings")
        return Choices(name, {str(key): dict(value) for key, value in given.items()})
    if not isinstance(given, list) or not given:
        raise ValueError(f"space.{name}: choices must be a list, or a mapping of names to settings")
    # Optuna keeps scalars only: a list, as of methods, goes by its text.
    named = {(v if _scalar(v) else json.dumps(v)): {name: v} for v in given}
    if len(named) < len(given):
        raise ValueError(f"space.{name}: the choices must differ from each other")
    return Choices(name, named)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _numbers(name: str, given: Mapping[str, Any]) -> Numbers:
    whole = given["type"] == "int"
    kinds = int if whole else (int, float)
    for key in ("low", "high", "step"):
        value = given.get(key)
        if (value is None and key == "step") or (
            isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        ):
            continue
        raise ValueError(f"space.{name}: {key}={value}: must be a {'whole ' * whole}number")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"space.{name}: log={log}: must be true or false")
    if low > high or (log and low <= 0) or (step is not None and step <= 0):
        raise ValueError(
            f"space.{name}: low={low}, high={high}, step={step}, log={log}: low must be at most "
            "high, step positive, and low positive on a log scale"
        )
    if log and step is not None:
        raise ValueError(f"space.{name}: log and step exclude each other")
    return Numbers(name, low, high, step, log, whole)
