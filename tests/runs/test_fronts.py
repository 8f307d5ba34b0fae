import numpy as np
import pytest

from edgegen.runs.fronts import hypervolume_gain


def area(costs, means, reference, rng, samples=200_000):
    """Share of random points of the box below the reference that some method beats, as an area."""
    points = rng.uniform(0, 1, (samples, 2)) * reference
    beaten = (costs[:, None] <= points[:, 0]) & (means[:, None] <= points[:, 1])
    return beaten.any(0).mean() * np.prod(reference)


@pytest.mark.parametrize("seed", range(3))
def test_against_random_points(seed):
    rng = np.random.default_rng(seed)
    sets = [(rng.uniform(0.1, 1, m), rng.uniform(0.1, 1, (m, 7))) for m in (5, 3)]
    reference = np.array([0.9, 0.8])
    found = hypervolume_gain(*sets, reference, resamples=10)
    expected = [area(c, e.mean(1), reference, rng) for c, e in sets]
    assert [each.value for each in found[:2]] == pytest.approx(expected, abs=4e-3)
    assert found[2].value == pytest.approx(found[0].value - found[1].value)
    assert all(each.n == 7 for each in found)


def test_a_hand_computed_gain():
    """Boxes of 2 × 1 and of 1 × 1 below (3, 2), where both samples say the same."""
    ours = np.array([1.0]), np.array([[1.0, 1.0]])
    theirs = np.array([2.0, 2.5]), np.array([[1.0, 1.0], [1.0, 1.0]])
    one, other, gain = hypervolume_gain(ours, theirs, (3, 2))
    assert (one.value, other.value, gain.value) == (2, 1, 1)
    assert (gain.low, gain.high, gain.sd) == (1, 1, 0)


def test_the_interval_is_that_of_prompts_drawn_for_all_together():
    """By hand: draw prompts, average what belongs to them, take both volumes."""
    rng = np.random.default_rng(5)
    prompts = np.repeat(np.arange(12), 2)
    errors = rng.uniform(0.2, 1, (4, 24))
    costs = np.array([0.2, 0.4, 0.3, 0.5])
    gain = hypervolume_gain(
        (costs[:2], errors[:2]), (costs[2:], errors[2:]), (1, 1), clusters=prompts
    )[2]
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(prompts == p) for p in rng.integers(0, 12, 12)])
        means = errors[:, rows].mean(1)
        volumes = []
        for pair in (slice(0, 2), slice(2, 4)):
            (c1, e1), (c2, e2) = sorted(zip(costs[pair], means[pair], strict=True))
            volumes.append((1 - c1) * (1 - e1) + max(0, e1 - e2) * (1 - c2))
        drawn.append(volumes[0] - volumes[1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert gain.low == pytest.approx(low, abs=0.08 * width)
    assert gain.high == pytest.approx(high, abs=0.08 * width)
    assert gain.sd == pytest.approx(np.std(drawn), rel=0.08)


def test_what_all_prompts_share_cancels_out():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 0.5, 30)  # some prompts are hard for everyone
    ours = np.array([0.5]), 0.2 + hard[None]
    theirs = np.array([0.5]), 0.25 + hard[None]
    one, _, gain = hypervolume_gain(ours, theirs, (1, 1))
    assert gain.low == pytest.approx(gain.high) == pytest.approx(0.5 * 0.05)
    assert one.high - one.low > 0.02


@pytest.mark.parametrize(
    ("first", "second", "clusters"),
    [
        ((np.ones(2), np.ones((1, 3))), (np.ones(1), np.ones((1, 3))), None),
        ((np.ones(1), np.ones((1, 3))), (np.ones(1), np.ones((1, 4))), None),
        ((np.ones(1), np.ones((1, 0))), (np.ones(1), np.ones((1, 0))), None),
        ((np.ones(1), np.ones((1, 3))), (np.ones(1), np.ones((1, 3))), np.zeros(2)),
    ],
)
def test_shapes_that_do_not_fit(first, second, clusters):
    with pytest.raises(ValueError, match=r"need \(M,\)|cluster labels"):
        hypervolume_gain(first, second, (2, 2), clusters=clusters)
