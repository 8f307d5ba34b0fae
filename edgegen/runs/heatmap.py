"""Tables as pictures: one heat map a table, side by side in one PNG."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class HeatMap:
    """A table with its captions; NaN leaves a field empty.

    Attributes:
        values: [row][column]; the first row is drawn on top.
        marked: fields with a frame around them, as (row, column).
    """

    title: str
    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    row_name: str
    column_name: str
    marked: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(
        cls,
        title: str,
        values: Mapping[tuple[int, int], float],
        row_name: str,
        column_name: str,
        marked: Collection[tuple[int, int]] = (),
    ) -> HeatMap:
        """From numbers by (row, column), both in rising order; `marked` are such pairs too."""
        rows, columns = (sorted({place[axis] for place in values}) for axis in (0, 1))
        return cls(
            title,
            [[values.get((row, column), math.nan) for column in columns] for row in rows],
            [str(row) for row in rows],
            [str(column) for column in columns],
            row_name,
            column_name,
            frozenset((rows.index(row), columns.index(column)) for row, column in marked),
        )


def heatmap_figure(maps: Sequence[HeatMap]) -> Figure:
    """The tables side by side, each with a scale of its own and its numbers in the fields."""
    # The object interface: no global state, and no window system is looked for.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    widths = [max(3.0, 0.62 * len(table.columns) + 1.4) for table in maps]
    height = max(2.6, 0.5 * max(len(table.rows) for table in maps) + 1.5)
    figure = Figure(figsize=(sum(widths), height), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=widths)[0]
    for axis, table in zip(axes, maps, strict=True):
        known = [v for row in table.values for v in row if math.isfinite(v)]
        low, high = min([0.0, *known]), max([*known, 1e-12])
        axis.imshow(table.values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        axis.set_title(table.title, fontsize=9)
        axis.set_xticks(range(len(table.columns)), table.columns, fontsize=8)
        axis.set_yticks(range(len(table.rows)), table.rows, fontsize=8)
        axis.set_xlabel(table.column_name, fontsize=8)
        axis.set_ylabel(table.row_name, fontsize=8)
        for row, line in enumerate(table.values):
            for column, value in enumerate(line):
                if math.isfinite(value):
                    ink = "black" if value > low + 0.6 * (high - low) else "white"
                    axis.text(
                        column, row, f"{value:.2g}", ha="center", va="center", size=7, color=ink
                    )
        for row, column in table.marked:
            frame = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, ec="red", lw=2)
            axis.add_patch(frame)
    return figure
