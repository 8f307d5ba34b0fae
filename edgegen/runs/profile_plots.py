"""The pictures of a profile: the roofline, and how features change from step to step."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..cost.profiling import Target, intensity
from ..cost.roofline import Device
from .page import metric

_HUES = ("#b4581c", "#2f6fb0", "#3f8f5f", "#8a5cb0", "#8a7a1f", "#7a4b3a")
_ROOFS = ("#8a8a8a", "#c06090", "#5f9ea0", "#b0892f", "#7f7fbf", "#6b8e23")


def roofline_plot(
    targets: Sequence[Target], machine: Device, devices: Sequence[Device], labelled: int = 12
) -> bytes:
    """PNG: intensity against speed reached, on logarithmic axes, below the roofs.

    A point is a module's own part (see `Target`); its area grows with its share of the time. To
    the left is this machine, where the `labelled` that take the longest carry a number, spelt out
    at the side; to the right the same points below the roofs of `devices`. Parts without MACs have
    no place on such axes and are left out.
    """
    shown = sorted(
        (each for each in targets if each.cost.macs_all and each.cost.bytes and each.seconds > 0),
        key=lambda each: -each.seconds,
    )
    figure = Figure(figsize=(12.5, 6), dpi=120, layout="constrained")
    here, there = figure.subplots(1, 2, width_ratios=(3, 2))
    xs = [intensity(each.cost) for each in shown] or [1.0]
    ys = [_speed(each) for each in shown] or [machine.flops]
    left, right = min(*xs, machine.ridge) / 2, max(*xs, machine.ridge) * 2.5
    here.set(xlim=(left, right), ylim=(min(*ys, machine.flops) / 2, max(*ys, machine.flops) * 4))
    total = sum(each.seconds for each in targets)
    _machine_roofs(here, machine, left, right)
    _points(here, shown, total)
    _numbers(figure, here, shown[:labelled])
    far = max(right, *(device.ridge * 3 for device in devices)) if devices else right
    for device, colour in zip(devices, _ROOFS * len(devices), strict=False):
        _roof(there, device, left, far, color=colour, linestyle=(0, (4, 2)), linewidth=1.2)
    _roof(there, machine, left, far, color="black", linewidth=2)
    _points(there, shown, total)
    highest = max(roof.flops for roof in (machine, *devices))
    there.set(xlim=(left, far), ylim=(here.get_ylim()[0], 100 * highest))  # room for the legend
    for axes, title in ((here, "On this machine"), (there, "Below the roofs of other devices")):
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("arithmetic intensity, FLOPs per byte")
        axes.grid(True, which="major", alpha=0.25)
        axes.set_title(title, loc="left", fontsize=11)
    here.set_ylabel("speed, FLOPs a second")
    here.legend(loc="lower right", fontsize=7, framealpha=0.9)
    handles, labels = there.get_legend_handles_labels()
    roofs = len(devices) + 1
    there.legend(handles[:roofs], labels[:roofs], loc="upper left", fontsize=6, framealpha=0.9)
    if shown:
        key = "\n".join(f"{i:>2}  {each.name}" for i, each in enumerate(shown[:labelled], 1))
        figure.legend(
            *([], []),
            title="most time\n\n" + key,
            title_fontsize=8,
            loc="outside right upper",
            frameon=False,
            alignment="left",
        )
    return _png(figure)


def _speed(target: Target) -> float:
    return 2 * target.cost.macs_all / target.seconds


def _machine_roofs(axes: Axes, machine: Device, left: float, right: float) -> None:
    _roof(axes, machine, left, right, color="black", linewidth=2)
    if machine.cache_bandwidth:
        knee = machine.flops / machine.cache_bandwidth
        bandwidth = metric(machine.cache_bandwidth, "B/s", 2)
        axes.plot(
            [left, knee],
            [left * machine.cache_bandwidth, machine.flops],
            color="black",
            linestyle=":",
            linewidth=1.5,
            label=f"from a core's own cache: {bandwidth} (measured)",
        )
    axes.plot([machine.ridge], [machine.flops], "k^", markersize=8)
    axes.annotate(
        f"ridge: {machine.ridge:.1f} FLOPs/byte",
        (machine.ridge, machine.flops),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )


def _roof(axes: Axes, device: Device, left: float, right: float, **style: Any) -> None:
    xs = [left, device.ridge, max(right, device.ridge)]
    kind = "measured" if device.measured else "estimate"
    peak, bandwidth = metric(device.flops, "FLOP/s"), metric(device.bandwidth, "B/s")
    label = f"{device.name}: {peak}, {bandwidth} ({kind})"
    axes.plot(xs, [device.attainable(x) for x in xs], label=label, **style)


def _points(axes: Axes, shown: Sequence[Target], total: float) -> None:
    networks = list(dict.fromkeys(each.network for each in shown))
    for network, colour in zip(networks, _HUES * len(networks), strict=False):
        own = [each for each in shown if each.network == network]
        axes.scatter(
            [intensity(each.cost) for each in own],
            [_speed(each) for each in own],
            s=[15 + 500 * each.seconds / total for each in own],
            color=colour,
            alpha=0.55,
            linewidth=0,
            label=network,
            zorder=3,
        )


def _numbers(figure: Figure, axes: Axes, named: Sequence[Target]) -> None:
    """1, 2, … beside the points, each at the nearest place that no other number has taken."""
    size = axes.get_position()
    inches = figure.get_size_inches() * (size.width, size.height)
    (left, right), (bottom, top) = np.log10(axes.get_xlim()), np.log10(axes.get_ylim())
    scale = 72 * inches / (right - left, top - bottom)  # points of print for a factor of ten
    spots = [np.log10([intensity(each.cost), _speed(each)]) * scale for each in named]
    taken: list[np.ndarray] = []
    places = [
        radius * np.array([np.cos(angle), np.sin(angle)])
        for radius in (12, 22, 34, 48, 64)
        for angle in np.linspace(0.7, 0.7 + 2 * np.pi, 12, endpoint=False)
    ]
    for number, (each, spot) in enumerate(zip(named, spots, strict=True), 1):
        place = next((p for p in places if _free(spot + p, taken, spots)), places[0])
        taken.append(spot + place)
        axes.annotate(
            str(number),
            (intensity(each.cost), _speed(each)),
            xytext=(place[0], place[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#555555", "shrinkA": 5},
            zorder=4,
        )


def _free(place: np.ndarray, numbers: Sequence[np.ndarray], points: Sequence[np.ndarray]) -> bool:
    clear = all(np.abs(place - number).max() > 12 for number in numbers)
    return clear and all(np.abs(place - point).max() > 8 for point in points)


def step_change_plot(changes: Mapping[str, Sequence[float]]) -> bytes:
    """PNG: a heat map of relative changes, a module a row, an evaluation a column.

    Args:
        changes: name → change against the evaluation before, from the second evaluation on.
    """
    names = list(changes)
    width = max((len(row) for row in changes.values()), default=0)
    grid = np.full((len(names), width), np.nan)
    for index, row in enumerate(changes.values()):
        grid[index, : len(row)] = row
    figure = Figure(
        figsize=(max(7.0, 3.5 + 0.5 * width), max(3.0, 1.4 + 0.24 * len(names))),
        dpi=110,
        layout="constrained",
    )
    axes = figure.subplots()
    finite = grid[np.isfinite(grid)]
    top = min(1.0, float(finite.max())) if finite.size else 1.0
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=top or 1.0)
    axes.set_xticks(range(width), [str(step) for step in range(2, width + 2)], fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("UNet evaluation, against the one before")
    axes.set_title("Relative change of outputs: |f(t) − f(t−1)| / |f(t)|", loc="left", fontsize=10)
    if width <= 16:
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                axes.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if value < 0.6 * top else "black",
                )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("dark: little changes, reuse pays" + (" (1 and more)" if top == 1 else ""))
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
