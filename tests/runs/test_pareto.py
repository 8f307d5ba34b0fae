import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation

from edgegen.runs.pareto import (
    Point,
    front,
    hypervolume,
    hypervolume_interval,
    picture_bytes,
    plot_front,
    spread_front,
)


def brute_front(points):
    return [
        not any(
            all(o[d] <= p[d] for d in range(len(p))) and any(o[d] < p[d] for d in range(len(p)))
            for o in points
        )
        for p in points
    ]


@pytest.mark.parametrize("seed", range(10))
def test_front_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 8, (30, 2 + seed % 2)).astype(float)  # with ties
    assert front(points).tolist() == brute_front(points.tolist())


def test_front_edges():
    assert front(np.array([[1.0, 2], [1, 2]])).tolist() == [True, True]
    assert front(np.array([[np.nan, 0], [1, 2]])).tolist() == [False, True]
    assert front(np.zeros((0, 2))).tolist() == []
    with pytest.raises(ValueError, match="must be"):
        front(np.zeros(3))


@pytest.mark.parametrize("seed", range(10))
def test_hypervolume_by_counting_cells(seed):
    """With whole coordinates, the unit squares that some point beats."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 14, (12, 2)).astype(float)
    squares = itertools.product(range(10), range(11))
    count = sum(any(x >= p[0] and y >= p[1] for p in points) for x, y in squares)
    assert hypervolume(points, (10, 11)) == count


def test_hypervolume_agrees_with_optunas():
    hypervolumes = pytest.importorskip("optuna._hypervolume")
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, reference = rng.random((9, 2)), rng.random(2) * 1.5
        inside = points[(points < reference).all(1)]
        theirs = hypervolumes.compute_hypervolume(inside, reference) if len(inside) else 0.0
        assert hypervolume(points, reference) == pytest.approx(theirs)


def test_hypervolume_interval_holds_what_resampling_by_hand_gives():
    rng = np.random.default_rng(1)
    costs = np.array([1.0, 2.0, 3.0])
    errors = rng.normal([[0.6], [0.4], [0.3]], 0.1, (3, 40))
    value, low, high = hypervolume_interval(costs, errors, (4.0, 1.0), resamples=400, seed=3)
    assert value == hypervolume(np.stack([costs, errors.mean(1)], 1), (4.0, 1.0))
    assert low < value < high
    # One method alone: the area is linear in its mean, whose interval has a closed form.
    one = errors[:1]
    _, low, high = hypervolume_interval(costs[:1], one, (4.0, 1.0), resamples=4000)
    half = 1.96 * one.std() / np.sqrt(one.size) * 3.0
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    with pytest.raises(ValueError, match="need"):
        hypervolume_interval(costs, errors[:2], (4.0, 1.0))


def test_errors_that_move_together_leave_the_gain_certain():
    """Samples are drawn for all methods at once."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 50)
    errors = np.stack([common + 1, common])
    gain = [
        hypervolume_interval(np.ones(len(rows)), errors[rows], (2.0, 9.0), resamples=300)
        for rows in ([0], [0, 1])
    ]
    assert gain[1][0] - gain[0][0] == pytest.approx(1)
    assert gain[1][1] - gain[0][1] == pytest.approx(1)


# Choosing


def test_a_spread_front_takes_the_ends_and_shares_alike():
    rng = np.random.default_rng(0)
    points = rng.random((60, 2))
    groups = ["a"] * 30 + ["b"] * 30
    chosen = spread_front(points, groups, 6)
    for group in "ab":
        own = np.array([g == group for g in groups])
        best = np.flatnonzero(own)[brute_front(points[own].tolist())]
        taken = np.flatnonzero(chosen & own)
        assert set(taken) <= set(best)
        assert len(taken) == 3
        ordered = best[np.argsort(points[best, 0])]
        assert {ordered[0], ordered[-1]} <= set(taken)


def test_what_a_short_front_leaves_goes_to_the_others():
    line = [(float(i), float(10 - i)) for i in range(10)]
    points = np.array([(0.0, 0.0), (1.0, 1.0), *line])
    chosen = spread_front(points, ["short", "short"] + ["long"] * 10, 6)
    assert chosen.tolist()[:2] == [True, False]
    assert chosen.sum() == 6


# Plots


def names(figure) -> list[Annotation]:
    return [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]


def crowd(count: int) -> list[Point]:
    rng = np.random.default_rng(0)
    xs = np.sort(rng.random(count)) + 1
    return [
        Point(x, 3 / x, f"{i} steps of a method", "ab"[i % 2], y_interval=(2.9 / x, 3.1 / x))
        for i, x in enumerate(xs)
    ]


@pytest.mark.parametrize("log", [True, False])
def test_labels_hide_no_label_and_stay_inside(log):
    figure = plot_front(crowd(25), "cost", "error", log=log)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in names(figure)]
    assert 5 <= len(boxes) <= 25
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = figure.axes[0].get_window_extent()
    legend = figure.axes[0].get_legend().get_window_extent()
    for box in boxes:
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
        assert not box.overlaps(legend)


def test_the_front_is_drawn_and_it_alone_is_labelled():
    points = [Point(1, 3, "a"), Point(2, 2, "b"), Point(3, 2.5, "worse"), Point(4, 1, "c")]
    figure = plot_front(points, "cost", "error", log=False)
    assert {text.get_text() for text in names(figure)} == {"a", "b", "c"}
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "front"]
    assert line.get_xydata().tolist() == [[1, 3], [2, 2], [4, 1]]
    assert line.get_drawstyle() == "steps-post"


def test_more_may_be_better():
    points = [Point(1, 3, "a"), Point(2, 2, "worse"), Point(3, 4, "b"), Point(4, 1, "also worse")]
    figure = plot_front(points, "cost", "score", log=False, maximize=(False, True))
    assert {text.get_text() for text in names(figure)} == {"a", "b"}


def test_a_front_for_each_group():
    points = [Point(1, 3, "a", "x"), Point(2, 4, "b", "y"), Point(3, 5, "worse", "y")]
    figure = plot_front(points, "cost", "error", log=False, by_group=True)
    assert {text.get_text() for text in names(figure)} == {"a", "b"}


def test_error_bars_end_where_the_intervals_end():
    figure = plot_front([Point(1, 3, y_interval=(2, 5)), Point(2, 2)], "x", "y", log=False)
    bars = figure.axes[0].containers[0].lines[2][0]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[2, 5], [2, 2]]


def test_the_same_figure_is_the_same_file_and_small():
    first, second = (picture_bytes(plot_front(crowd(12), "cost", "error")) for _ in range(2))
    assert first == second
    assert len(first) < 200_000
    with pytest.raises(ValueError, match="no points"):
        plot_front([], "x", "y")
