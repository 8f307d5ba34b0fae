"""Turns, quantiles and intervals, on clocks that the tests wind themselves."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from edgegen.cost.latency import interleaved, median_interval, paired_ratio, series, timing


class Machine:
    """A clock that only work moves, and a log of what happened."""

    def __init__(self, costs):
        self.costs, self.now, self.log, self.active = costs, 0.0, [], None
        self.slowdown = lambda number: 1.0

    def methods(self):
        return {name: lambda name=name: self.method(name) for name in self.costs}

    @contextmanager
    def method(self, name):
        self.now += 1000  # entering is dear, and is not measured
        self.active = name
        yield
        self.now += 1000
        self.active = None

    def work(self, number):
        self.log.append((number, self.active))
        self.now += self.costs[self.active] * self.slowdown(len(self.log))

    def clock(self):
        return self.now

    def measure(self, **options):
        return interleaved(self.methods(), self.work, meters={"seconds": self.clock}, **options)


def test_every_round_holds_every_method_once():
    machine = Machine({"a": 1.0, "b": 2.0, "c": 3.0})
    readings = machine.measure(rounds=40, warmup=2, seed=1)
    assert len(machine.log) == 42 * 3
    assert len(readings) == 40 * 3
    for number in range(40):
        own = [each for each in readings if each.round == number]
        assert {each.method for each in own} == {"a", "b", "c"}
        assert [each.place for each in own] == [0, 1, 2]
    assert [each[1] for each in machine.log[6:]] == [each.method for each in readings]
    assert [each[0] for each in machine.log[6:]] == [each.round for each in readings]
    for name, cost in machine.costs.items():
        assert np.array_equal(series(readings, name), [cost] * 40)


def test_no_method_has_a_place_of_its_own():
    machine = Machine(dict.fromkeys("abc", 1.0))
    readings = machine.measure(rounds=3000, warmup=0, seed=0)
    places = Counter((each.method, each.place) for each in readings)
    table = [[places[name, place] for place in range(3)] for name in "abc"]
    # Each row and column sums to 3000: 4 degrees of freedom.
    assert ((np.array(table) - 1000) ** 2 / 1000).sum() < stats.chi2.ppf(0.999, 4)
    followers = Counter(
        (first.method, second.method)
        for first, second in pairwise(readings)
        if first.round == second.round
    )
    assert min(followers.values()) > 800
    assert len(followers) == 6


def test_the_order_depends_on_the_seed_alone():
    def order(seed):
        return [e.method for e in Machine(dict.fromkeys("abcd", 1.0)).measure(rounds=9, seed=seed)]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_warmup_is_not_counted_and_several_meters_are_read():
    machine = Machine({"a": 1.0})
    machine.slowdown = lambda calls: 50.0 if calls <= 3 else 1.0
    readings = interleaved(
        machine.methods(),
        machine.work,
        rounds=4,
        warmup=3,
        meters={"seconds": machine.clock, "joules": lambda: 2 * machine.now},
    )
    assert [each.took for each in readings] == [{"seconds": 1.0, "joules": 2.0}] * 4
    assert np.array_equal(series(readings, "a", "joules"), [2.0] * 4)


def test_by_default_real_time_is_measured():
    (reading,) = interleaved(Machine({"a": 1.0}).methods(), lambda number: None, rounds=1)
    assert 0 <= reading.took["seconds"] < 60


def test_drift_spoils_no_ratio():
    """The machine gets ten times slower over the run: by half per round of two."""
    machine = Machine({"none": 3.0, "half": 1.5})
    machine.slowdown = lambda calls: 1.0 + 9 * calls / 400
    readings = machine.measure(rounds=200, warmup=0)
    ratio = paired_ratio(series(readings, "half"), series(readings, "none"))
    assert ratio.value == pytest.approx(0.5, rel=0.01)
    assert ratio.low < 0.5 < ratio.high
    assert ratio.high - ratio.low < 0.02
    blocks = series(readings, "none")
    assert np.median(blocks[100:]) > 2 * np.median(blocks[:100])  # what blocks would have shown


def test_an_error_passes_through():
    machine = Machine({"a": 1.0})

    def fail(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved(machine.methods(), fail, rounds=2)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_quantiles_are_those_of_numpy(n):
    values = np.random.default_rng(n).lognormal(size=n)
    found = timing(values)
    assert found.n == n
    for share, value in ((25, found.q25), (50, found.median), (75, found.q75), (95, found.p95)):
        assert value == pytest.approx(np.percentile(values, share))
    assert found.iqr == pytest.approx(stats.iqr(values))


@pytest.mark.parametrize("n", [1, 5, 6, 7, 8, 10, 11, 25, 60, 101])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_is_the_exact_one_of_the_sign_test(n, level):
    values = np.random.default_rng(n).normal(size=n)
    wanted = stats.quantile_test(values, q=0, p=0.5).confidence_interval(level)
    found = median_interval(values, level)
    if np.isnan([wanted.low, wanted.high]).any():
        assert found is None
    else:
        assert found == (wanted.low, wanted.high)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.exponential(size=12)) for _ in range(4000)]
    share = np.mean([low <= np.log(2) <= high for low, high in intervals])
    # With 12 values the exact coverage is 1 − 2·P(Binomial(12, ½) ≤ 2) = 0.9614.
    assert share == pytest.approx(0.9614, abs=0.01)


def test_ratios_are_of_pairs():
    base, values = [1.0, 10.0, 100.0], [2.0, 30.0, 250.0]
    ratio = paired_ratio(values, base)
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (2.5, None, None, 3)
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio(values, base[:2])
    with pytest.raises(ValueError, match="one measurement or more"):
        timing([])
