"""Intervals against closed forms and scipy's bootstrap; shares against counting by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from edgegen.metrics.quality.bootstrap import ratio_interval
from edgegen.metrics.quality.concept_score import ConceptScore


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).random(80) ** 2
    low, high = ratio_interval(values, np.ones(80), resamples=20000)
    oracle = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    assert low == pytest.approx(oracle.low, abs=0.003)
    assert high == pytest.approx(oracle.high, abs=0.003)


def test_the_interval_of_a_ratio_is_that_of_scipy():
    rng = np.random.default_rng(1)
    below = rng.random(60) + 0.5
    above = below * 0.7 + 0.1 * rng.standard_normal(60)

    def ratio(a, b, axis):
        return a.sum(axis) / b.sum(axis)

    oracle = scipy.stats.bootstrap(
        (above, below), ratio, paired=True, n_resamples=20000, method="percentile", rng=2
    ).confidence_interval
    low, high = ratio_interval(above, below, resamples=20000, level=0.95)
    assert low == pytest.approx(oracle.low, abs=0.003)
    assert high == pytest.approx(oracle.high, abs=0.003)


def test_the_interval_is_a_function_of_its_seed():
    values, sizes = np.arange(20.0), np.ones(20)
    assert ratio_interval(values, sizes) == ratio_interval(values, sizes)
    assert ratio_interval(values, sizes, seed=1) != ratio_interval(values, sizes)


def test_sums_of_zero_give_no_finite_interval():
    low, high = ratio_interval(np.zeros(3), np.zeros(3))
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="no clusters"):
        ratio_interval(np.zeros(0), np.zeros(0))


def test_pictures_of_one_caption_stay_together():
    """Equal pictures of a caption tell nothing new: three of each are as good as one."""
    one = np.random.default_rng(0).random(200) < 0.4
    zeros = np.zeros(200, dtype=bool)
    styles = np.array(["noto"] * 200)
    name = "quality/concept_accuracy"
    alone = ConceptScore(one[:, None], zeros[:, None], one, styles).metrics(4000)
    thrice = ConceptScore(
        np.repeat(one[:, None], 3, 1), np.repeat(zeros[:, None], 3, 1), one, styles
    ).metrics(4000)
    assert thrice == alone
    half = 1.96 * math.sqrt(one.mean() * (1 - one.mean()) / 200)
    assert alone[f"{name}_lo"] == pytest.approx(one.mean() - half, abs=0.015)
    assert alone[f"{name}_hi"] == pytest.approx(one.mean() + half, abs=0.015)


def test_shares_are_those_counted_by_hand():
    score = ConceptScore(
        correct=np.array([[1, 1], [1, 0], [0, 0], [0, 1]], dtype=bool),
        copied=np.array([[0, 0], [0, 0], [0, 1], [0, 0]], dtype=bool),
        real=np.array([1, 1, 0, 1], dtype=bool),
        styles=np.array(["noto", "fluent-3d", "noto", "fluent-3d"]),
    )
    found = score.metrics(500)
    expected = {
        "quality/concept_accuracy": 4 / 8,
        "quality/concept_accuracy_n": 4,
        "quality/concept_accuracy_real": 3 / 4,
        "quality/concept_accuracy_relative": (4 / 8) / (3 / 4),
        "quality/concept_accuracy_noto": 2 / 4,
        "quality/concept_accuracy_noto_n": 2,
        "quality/concept_accuracy_real_noto": 1 / 2,
        "quality/concept_accuracy_fluent_3d": 2 / 4,
        "quality/concept_accuracy_fluent_3d_n": 2,
        "quality/concept_accuracy_real_fluent_3d": 1,
        "quality/copy_rate": 1 / 8,
        "quality/copy_rate_n": 4,
    }
    ends = {key for key in found if key.endswith(("_lo", "_hi"))}
    assert {key: found[key] for key in found if key not in ends} == pytest.approx(expected)
    for key in ("concept_accuracy", "concept_accuracy_real", "copy_rate"):
        name = f"quality/{key}"
        assert found[f"{name}_lo"] <= found[name] <= found[f"{name}_hi"]


def test_where_no_real_picture_is_right_there_is_no_relative_accuracy():
    no = np.zeros((2, 1), dtype=bool)
    found = ConceptScore(no, no, no[:, 0], np.array(["noto", "noto"])).metrics(10)
    assert not [key for key in found if "relative" in key]
