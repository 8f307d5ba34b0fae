"""Trade-offs of two objectives: the front, its hypervolume with an interval, and the plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from .atomic import write_atomic

_COLOURS = ("#b4581c", "#2f6fb0", "#3f8f5f", "#8a5cb0", "#8a7a1f", "#c2417c", "#4a9aa5", "#66625c")
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Point:
    """One way of working in a plot: x and y, with the ends of their intervals.

    `x_interval` and `y_interval` are (low, high) or None. Points of one `group` share a colour.
    """

    x: float
    y: float
    label: str = ""
    group: str = ""
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def front(points: np.ndarray) -> np.ndarray:
    """Which points no other one beats: (N, D) objectives, all minimised, to (N,) bool.

    A point beats another where it is nowhere worse and somewhere better, so equal points stay
    together. NaN beats nothing and is never on the front.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2:
        raise ValueError(f"points must be (N, D), got shape {points.shape}")
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    return ~(no_worse & better).any(0) & np.isfinite(points).all(-1)


def spread_front(points: np.ndarray, groups: Sequence[Any], most: int) -> np.ndarray:
    """At most `most` points of the fronts of all groups, spread along each: (N, 2) to (N,) bool.

    Each group has a front of its own and an equal share of `most`; what a short front leaves over
    goes to the others. Of a long one the ends are taken, and points evenly between.
    """
    names = list(dict.fromkeys(groups))
    fronts = []
    for name in names:
        own = np.array([place for place, group in enumerate(groups) if group == name])
        best = own[front(points[own])]
        fronts.append(best[np.lexsort((points[best, 1], points[best, 0]))])
    chosen = np.zeros(len(points), bool)
    left = most
    for done, places in enumerate(sorted(fronts, key=len)):
        share = min(len(places), left // (len(fronts) - done))
        evenly = np.linspace(0, len(places) - 1, share).round().astype(int)
        chosen[places[evenly]] = True
        left -= share
    return chosen


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """Area that a set of points beats, up to a reference point: (N, 2), both minimised.

    The measure of the union of the boxes between each point and the reference (Zitzler and Thiele
    1999). Points that do not beat the reference add nothing.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    points = points[(points < np.asarray(reference)).all(1)]
    area, ceiling = 0.0, float(reference[1])
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return float(area)


def hypervolume_interval(
    costs: np.ndarray,
    errors: np.ndarray,
    reference: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Hypervolume of (cost, mean error), and its 95 % percentile bootstrap interval.

    Args:
        costs: (M,) the known cost of each method.
        errors: (M, N) the error of each method on each sample; column i is the same prompt and
            noise for all, so samples are drawn for all methods together.
        reference: (cost, error) that counts as no gain.

    Returns (value, low, high).
    """
    costs, errors = np.asarray(costs, np.float64), np.asarray(errors, np.float64)
    if errors.ndim != 2 or costs.shape != errors.shape[:1] or errors.shape[1] == 0:
        raise ValueError(f"{costs.shape} costs and {errors.shape} errors: need (M,) and (M, N)")
    rng = np.random.default_rng(seed)
    volumes = []
    for _ in range(resamples):
        drawn = errors[:, rng.integers(0, errors.shape[1], errors.shape[1])].mean(1)
        volumes.append(hypervolume(np.stack([costs, drawn], 1), reference))
    value = hypervolume(np.stack([costs, errors.mean(1)], 1), reference)
    low, high = np.quantile(volumes, [0.025, 0.975])
    return value, float(low), float(high)


def plot_front(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    log: bool = True,
    maximize: tuple[bool, bool] = (False, False),
    by_group: bool = False,
) -> Figure:
    """A plot of the points with their intervals, the front drawn and its points labelled.

    Args:
        log: logarithmic axes, where all numbers are positive.
        maximize: whether more is better, of x and of y.
        by_group: a front for each group, instead of one for all.

    Raises ValueError where there is no point.
    """
    if not points:
        raise ValueError("no points to plot")
    figure = Figure(figsize=(7.2, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    groups = list(dict.fromkeys(point.group for point in points))
    for number, group in enumerate(groups):
        own = [point for point in points if point.group == group]
        axes.errorbar(
            [point.x for point in own],
            [point.y for point in own],
            xerr=_bars([(p.x, p.x_interval) for p in own]),
            yerr=_bars([(p.y, p.y_interval) for p in own]),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=5,
            elinewidth=1,
            alpha=0.85,
            label=group,
        )
    values = np.array([(point.x, point.y) for point in points])
    if log and (values > 0).all():
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    signed = values * np.where(maximize, -1, 1)
    on_front = np.zeros(len(points), bool)
    for number, name in enumerate(groups if by_group else [None]):
        member = np.array([name is None or point.group == name for point in points])
        best = np.flatnonzero(member)[front(signed[member])]
        on_front[best] = True
        corners = values[best][np.lexsort((values[best, 1], values[best, 0]))]
        # Between two points of the front nothing better is known than the worse of each.
        axes.step(
            *corners.T,
            where="pre" if maximize[0] else "post",
            color="#66625c" if name is None else _COLOURS[number % len(_COLOURS)],
            linewidth=1,
            zorder=0,
            label="front" if name is None else None,
        )
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    _label(axes, [p for p, best in zip(points, on_front, strict=True) if best], values)
    return figure


def picture_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_figure(path: str | Path, figure: Figure) -> Path:
    """Write the figure as a PNG, atomically."""
    return write_atomic(path, picture_bytes(figure))


def _bars(pairs: Sequence[tuple[float, tuple[float, float] | None]]) -> np.ndarray | None:
    if all(interval is None for _, interval in pairs):
        return None
    ends = [(value, *(interval or (value, value))) for value, interval in pairs]
    return np.array([(max(v - low, 0), max(high - v, 0)) for v, low, high in ends]).T


def _label(axes: Axes, points: Sequence[Point], values: np.ndarray) -> list[Annotation]:
    """Name points, each at the nearest place where it hides no label and few points.

    One for which there is no such place within the axes stays without a name.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # settles the layout, so that extents are final
    dots = axes.transData.transform(values)
    inside = axes.get_window_extent()
    taken: list[Bbox] = []
    placed: list[Annotation] = []
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for point in sorted(points, key=lambda point: point.x):
        if not point.label:
            continue
        text = axes.annotate(
            point.label,
            (point.x, point.y),
            (5, 5),
            textcoords="offset points",
            fontsize=7,
            color="#1c1b19",
        )
        free: tuple[int, tuple[float, float], Bbox] | None = None
        for offset in _offsets():
            _move(text, offset)
            box = text.get_window_extent().padded(1)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1
            if not within or box.y0 < inside.y0 or box.y1 > inside.y1:
                continue
            if any(box.overlaps(other) for other in taken):
                continue
            hidden = int(box.count_contains(dots))
            if free is None or hidden < free[0]:
                free = hidden, offset, box
            if hidden == 0:
                break
        if free is None:
            text.remove()
            continue
        _move(text, free[1])
        taken.append(free[2])
        placed.append(text)
    return placed


def _move(text: Annotation, offset: tuple[float, float]) -> None:
    x, y = offset
    text.set(
        position=offset,
        ha="left" if x > 0 else "right" if x < 0 else "center",
        va="bottom" if y > 0 else "top" if y < 0 else "center",
    )


def _offsets() -> list[tuple[float, float]]:
    ways = [(1, 1), (1, 0), (0, 1), (1, -1), (-1, -1), (0, -1), (-1, 0), (-1, 1)]
    return [(x * reach, y * reach) for reach in (5, 10, 16, 24) for x, y in ways]
