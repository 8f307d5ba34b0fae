"""Intervals against scipy's bootstrap and closed forms."""

import numpy as np
import pytest
from scipy import stats

from edgegen.metrics.quality.bootstrap import bootstrap_mean, paired_difference

random = np.random.default_rng(0)
SKEWED = random.exponential(size=150)


def test_mean_agrees_with_scipy() -> None:
    found = bootstrap_mean(SKEWED, resamples=20_000)
    known = stats.bootstrap((SKEWED,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert found.value == pytest.approx(SKEWED.mean())
    assert found.sd == pytest.approx(stats.sem(SKEWED))
    assert found.n == 150
    width = known.confidence_interval.high - known.confidence_interval.low
    assert found.low == pytest.approx(known.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(known.confidence_interval.high, abs=0.03 * width)


def test_repeats_within_a_cluster_add_no_certainty() -> None:
    labels = np.arange(150).repeat(4)
    four = bootstrap_mean(SKEWED.repeat(4), labels)
    one = bootstrap_mean(SKEWED)
    assert (four.low, four.high) == pytest.approx((one.low, one.high))
    assert four.sd == pytest.approx(one.sd)
    apart = bootstrap_mean(SKEWED.repeat(4))
    assert apart.high - apart.low < 0.6 * (four.high - four.low)


def test_the_interval_covers_the_truth() -> None:
    draws = np.random.default_rng(5).exponential(size=(400, 80))
    hits = [e.low < 1 < e.high for e in (bootstrap_mean(d, resamples=400) for d in draws)]
    assert 0.88 < np.mean(hits) < 0.98


def test_pairs_cancel_what_they_share() -> None:
    hard = random.normal(size=200)
    first, second = hard + 0.1 + 0.01 * random.normal(size=200), hard
    paired = paired_difference(first, second)
    assert paired.low < 0.1 < paired.high
    assert paired.low > 0.09
    apart = bootstrap_mean(first).sd + bootstrap_mean(second).sd
    assert paired.sd < 0.02 * apart
    assert paired_difference(second, first).value == pytest.approx(-paired.value)


def test_same_seed_same_interval() -> None:
    assert bootstrap_mean(SKEWED) == bootstrap_mean(SKEWED)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[1.0]]])
def test_no_interval_of_nothing(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(np.array(values))


def test_pairs_need_partners() -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="cluster"):
        bootstrap_mean(np.ones(3), np.ones(2))
