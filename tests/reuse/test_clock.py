from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgegen.reuse.clock import Drift, Every, Full, Moment, Reused, Spread, parse_clock


def passes(clock: Any, total: int) -> list[int]:
    """Steps of the full passes, counted from 1."""
    return [step + 1 for step in range(total) if clock.full(Moment(step, total))]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (2, [1, 3, 5, 7]),
        (3, [1, 4, 7]),
        (20, [1]),
        ({"full": [1, 2, 6]}, [1, 2, 6]),
        ({"reuse": [5, 6, 7, 8]}, [1, 2, 3, 4]),  # the paper's {5–8} and {3–6}
        ({"reuse": [3, 4, 5, 6]}, [1, 2, 7, 8]),
        # ⌊8·(i/4)²⌋ = 0, 0.5, 2, 4.5; ⌊8·(2u − u²)⌋ = 0, 3.5, 6, 7.5; ⌊8·(3u² − 2u³)⌋ = 0, 1.25, …
        ({"early": 2}, [1, 2, 3, 5]),
        ("early", [1, 2, 3, 5]),
        ({"late": 2}, [1, 4, 7, 8]),
        ({"ends": 2}, [1, 2, 5, 7]),
        ({"span": 2}, [1, 3, 6, 8]),
        ({"span": 3}, [1, 4, 8]),
    ],
)
def test_full_passes_of_eight_steps(said: Any, expected: list[int]) -> None:
    assert passes(parse_clock(said), 8) == expected


@pytest.mark.parametrize("where", ["early", "late", "ends", "span"])
def test_spreads_cost_what_the_plain_clock_costs(where: str) -> None:
    for total in range(1, 60):
        for n in range(1, 9):
            found = Spread(where, n).positions(total)
            assert len(found) == math.ceil(total / n)
            assert found[0] == 0
            assert found == sorted(set(found))
            assert found[-1] < total


def test_where_spreads_are_dense() -> None:
    half = {where: Spread(where, 5).positions(50) for where in ("early", "late", "ends")}
    assert sum(step < 25 for step in half["early"]) > 5 > sum(step < 25 for step in half["late"])
    assert sum(15 <= step < 35 for step in half["ends"]) < 4


def test_a_span_is_even_from_the_first_step_to_the_last() -> None:
    for total, n in [(8, 2), (9, 4), (25, 2), (25, 3), (50, 7), (4, 2)]:
        found = Spread("span", n).positions(total)
        wanted = np.linspace(0, total - 1, len(found))
        steps = np.arange(total)
        assert found == [int(np.abs(steps - place).argmin()) for place in wanted]
        assert found[-1] == total - 1


def test_drift() -> None:
    clock = parse_clock({"drift": 0.5, "longest": 3})
    assert clock == Drift(0.5, 3)
    assert clock.full(Moment(1, 9, drift=None))
    assert not clock.full(Moment(4, 9, since=3, drift=0.4))
    assert clock.full(Moment(4, 9, since=3, drift=0.6))
    assert clock.full(Moment(4, 9, since=4, drift=0.0))


def test_clocks_pass_through() -> None:
    assert parse_clock(Every(3)) == Every(3)


@pytest.mark.parametrize(
    "said",
    [
        0,
        -1,
        2.5,
        True,
        "often",
        None,
        [1, 3],
        {},
        {"full": [2, 3]},
        {"full": 3},
        {"full": [1, 0]},
        {"reuse": [1, 2]},
        {"reuse": "2"},
        {"early": 0},
        {"drift": 0},
        {"drift": 0.1, "longest": 0},
        {"full": [1], "reuse": [2]},
        {"never": 2},
    ],
    ids=str,
)
def test_what_is_no_clock(said: Any) -> None:
    with pytest.raises(ValueError, match="clock") as caught:
        parse_clock(said)
    assert "\n" not in str(caught.value)


def test_lists_are_complements() -> None:
    assert passes(Full(frozenset({1, 4})), 5) == [1, 4]
    assert passes(Reused(frozenset({2, 3, 5})), 5) == [1, 4]
