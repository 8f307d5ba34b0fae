"""How to predict what was skipped, without weights: as it was, or extrapolated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .context import Features


@dataclass(frozen=True)
class Extrapolation:
    """r̂_out from the last full passes: a polynomial of degree `order` in the timestep.

    Order 0 is the identity, r̂_out(t) = r_out at the last full pass; 1 is linear, 2 quadratic. With
    fewer full passes behind it, the degree is lower.
    """

    order: int = 0

    def __post_init__(self) -> None:
        if self.order not in (0, 1, 2):
            raise ValueError(f"order={self.order}: allowed are 0 (identity), 1 and 2")

    def remember(self, past: list[tuple[float, Features]], time: float, value: Features) -> None:
        """Put the full pass at timestep `time` first in `past`, and drop what is too old.

        Second-order schedulers evaluate twice at one timestep: the later one counts.
        """
        past[:] = [(time, value), *(entry for entry in past if entry[0] != time)][: self.order + 1]

    def at(self, past: Sequence[tuple[float, Features]], time: float) -> Features:
        """The value at timestep `time`; `past` is not empty."""
        weights = lagrange_weights([when for when, _ in past], time)
        values = zip(*(value for _, value in past), strict=True)
        return tuple(
            sum((w * v for w, v in zip(weights[1:], site[1:], strict=True)), weights[0] * site[0])
            for site in values
        )


def lagrange_weights(nodes: Sequence[float], at: float) -> list[float]:
    """Weights by which the values at distinct `nodes` give the value at `at` (Lagrange)."""
    weights = []
    for i, node in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if i != j:
                weight *= (at - other) / (node - other)
        weights.append(weight)
    return weights
