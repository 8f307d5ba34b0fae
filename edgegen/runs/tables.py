"""Tables of results: rows by columns, the best ones marked as far as their intervals tell them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .finished import Row

Better = Literal["lower", "higher"]
# Parts of metric names that say which way is better; what none of them fits is not marked.
_HIGHER = (
    *("psnr", "ssim", "vmaf", "accuracy", "precision", "recall", "clip", "directional", "sqnr"),
    *("consistency", "tem_con", "frame_acc", "flicker", "score", "hypervolume"),
)
_LOWER = (
    *(
        "rmse",
        "ode_",
        "paired_",
        "fd_",
        "fid",
        "kid",
        "lpips",
        "flip",
        "error",
        "loss",
        "copy_rate",
    ),
    *("flops", "macs", "bops", "bytes", "seconds", "latency", "memory", "params", "energy"),
)


@dataclass(frozen=True)
class Score:
    """A number with the ends of its interval, which are the number itself where it has none."""

    value: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether there is no interval."""
        return self.low == self.value == self.high

    def below_zero(self, otherwise: str = "no, more") -> str:
        """Whether the interval lies below zero: "yes", `otherwise` where above, or neither."""
        return "yes" if self.high < 0 else otherwise if self.low > 0 else "not told apart"


Key = tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """Scores by row and column, and which of each column's are best.

    `scores` and `best` go by (row, column, metric), where row and column hold the values of
    `row_heads` and `column_heads`; `columns` is `[()]` where a column is a metric and nothing else.
    """

    row_heads: tuple[str, ...]
    column_heads: tuple[str, ...]
    metrics: tuple[str, ...]
    better: Mapping[str, Better]
    rows: list[Key]
    columns: list[Key]
    scores: dict[tuple[Key, Key, str], Score]
    best: frozenset[tuple[Key, Key, str]]

    def grid(self, intervals: bool = True) -> tuple[list[str], list[list[tuple[str, bool]]]]:
        """The heads, and rows of (text, whether it is best)."""
        lines = []
        for row in self.rows:
            line = [(_text(value), False) for value in row]
            for place in self._places(row):
                score = self.scores.get(place)
                text = "" if score is None else score_text(score, intervals)
                line.append((text, place in self.best))
            lines.append(line)
        return self._heads(), lines

    def markdown(self, intervals: bool = True) -> str:
        """A GitHub table, the best scores bold."""
        heads, lines = self.grid(intervals)
        keys = len(self.row_heads)
        text = [_pipes(_escaped_md(head) for head in heads)]
        text.append(_pipes(["---"] * keys + ["---:"] * (len(heads) - keys)))
        for line in lines:
            text.append(_pipes(f"**{t}**" if b else _escaped_md(t) for t, b in line))
        return "\n".join([*text, "", self.note(), ""])

    def latex(self, intervals: bool = True) -> str:
        """A `tabular` for the package booktabs, the best scores bold."""
        heads, lines = self.grid(intervals)
        keys = len(self.row_heads)
        body = [" & ".join(map(_escaped_tex, heads)) + r" \\", r"\midrule"]
        for line in lines:
            cells = [rf"\textbf{{{_escaped_tex(t)}}}" if b else _escaped_tex(t) for t, b in line]
            body.append(" & ".join(cells) + r" \\")
        form = "l" * keys + "r" * (len(heads) - keys)
        lines_ = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", *body, r"\bottomrule"]
        return "\n".join([f"% {self.note()}", *lines_, r"\end{tabular}", ""])

    def note(self) -> str:
        """What bold and brackets mean."""
        bare = [metric for metric in self.metrics if metric not in self.better]
        marked = (
            "Bold: the best of a column, and all whose interval overlaps the best one's."
            if self.best
            else "Nothing is marked as best."
        )
        ends = any(not score.exact for score in self.scores.values())
        brackets = " In brackets: 95 % intervals." if ends else ""
        unknown = f" Which way is better is not known of {', '.join(bare)}." if bare else ""
        return marked + brackets + unknown

    def _places(self, row: Key) -> list[tuple[Key, Key, str]]:
        return [(row, column, metric) for column in self.columns for metric in self.metrics]

    def _heads(self) -> list[str]:
        arrows = {"lower": " ↓", "higher": " ↑"}
        several = len(self.metrics) > 1 or not self.column_heads
        heads = [short(key) for key in self.row_heads]
        for column in self.columns:
            named = [
                f"{short(key)} {_text(value)}"
                for key, value in zip(self.column_heads, column, strict=True)
            ]
            for metric in self.metrics:
                label = metric + arrows.get(self.better.get(metric, ""), "")
                heads.append(" · ".join([*named, label] if several else named))
        return heads


def make_table(
    results: Sequence[Row],
    rows: Sequence[str],
    cols: Sequence[str],
    metrics: Sequence[str],
    better: Mapping[str, Better] | None = None,
) -> Table:
    """Arrange results as a table.

    Args:
        results: rows with the keys `rows` and `cols` and the metrics; beside a metric `x` may
            stand `x_lo` and `x_hi`.
        rows: keys whose values name a row. Numbers are sorted, other values keep their order.
        cols: keys whose values name a column; none for a column a metric.
        metrics: what stands in the cells.
        better: which way is better, by metric, where `direction` does not know.

    Raises ValueError where two results fall into one cell.
    """
    ways = {metric: direction(metric) for metric in metrics} | dict(better or {})
    known = {metric: way for metric, way in ways.items() if way is not None}
    scores: dict[tuple[Key, Key, str], Score] = {}
    for result in results:
        row, column = (tuple(result.get(key) for key in keys) for keys in (rows, cols))
        for metric in metrics:
            value = result.get(metric)
            if value is None:
                continue
            if (row, column, metric) in scores:
                raise ValueError(_doubled(results, rows, cols, row, column))
            ends = [result.get(metric + end) for end in ("_lo", "_hi")]
            low, high = (value if end is None else end for end in ends)
            scores[row, column, metric] = Score(value, low, high)
    row_keys = _sorted([tuple(result.get(key) for key in rows) for result in results])
    col_keys = _sorted([tuple(result.get(key) for key in cols) for result in results])
    best: set[tuple[Key, Key, str]] = set()
    for column in col_keys:
        for metric, way in known.items():
            there = {p: s for p, s in scores.items() if p[1:] == (column, metric)}
            best |= best_of(there, way)
    return Table(
        *(tuple(rows), tuple(cols), tuple(metrics)),
        better=known,
        rows=row_keys,
        columns=col_keys,
        scores=scores,
        best=frozenset(best),
    )


def best_of(scores: Mapping[Any, Score], better: Better) -> set[Any]:
    """Keys of the best score and of all whose interval overlaps its interval.

    Those cannot be told from the best one by their intervals. Where all scores are the same number,
    none is best.
    """
    if len({score.value for score in scores.values()}) < 2:
        return set()
    sign = 1 if better == "lower" else -1
    best = min(scores.values(), key=lambda score: sign * score.value)
    return {key for key, s in scores.items() if s.low <= best.high and s.high >= best.low}


def direction(metric: str) -> Better | None:
    """Which way is better, as far as the metric's name tells."""
    name = metric.rpartition("/")[2]
    if any(part in name for part in _LOWER):
        return "lower"
    return "higher" if any(part in name for part in _HIGHER) else None


def score_text(score: Score, intervals: bool = True) -> str:
    """A score to the digits that its interval bears: `0.1234 [0.1201, 0.1262]`."""
    half = max(score.high - score.value, score.value - score.low)
    if half <= 0:
        return number_text(score.value)
    places = min(max(1 - math.floor(math.log10(half)), 0), 9)
    value, low, high = (f"{x:.{places}f}" for x in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]" if intervals else value


def pairs_table(rows: Sequence[Row], metric: str, heads: str) -> str:
    """Paired differences in `metric` of the rows whose `pair` is "LESS < MORE", as Markdown.

    `heads` stands over the two names, as in "errs less | than". Empty where there is no row.
    """
    lines = [f"| {heads} | difference | |", "| --- | --- | ---: | --- |"]
    for row in rows:
        score = Score(row[metric], row[f"{metric}_lo"], row[f"{metric}_hi"])
        less, more = str(row["pair"]).split(" < ")
        lines.append(f"| {less} | {more} | {score_text(score)} | {score.below_zero()} |")
    return "\n".join([*lines, ""]) if rows else ""


def number_text(value: float) -> str:
    """A number to four significant digits, whole ones in full."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return str(int(value))
    text = f"{value:.4g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e9 else text


def short(key: str) -> str:
    """The last part of a dotted key: `settings.scheduler` is `scheduler`."""
    return key if "/" in key else key.rpartition(".")[2]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return number_text(value) if isinstance(value, int | float) else str(value)


def _sorted(keys: list[Key]) -> list[Key]:
    unique = list(dict.fromkeys(keys))
    width = len(unique[0]) if unique else 0
    orders = []
    for place in range(width):
        values = list(dict.fromkeys(key[place] for key in unique))
        if all(isinstance(value, int | float) for value in values):
            values.sort()
        orders.append({value: rank for rank, value in enumerate(values)})
    return sorted(unique, key=lambda key: [orders[i][value] for i, value in enumerate(key)])


def _doubled(
    results: Sequence[Row], rows: Sequence[str], cols: Sequence[str], row: Key, column: Key
) -> str:
    keys = [*rows, *cols]
    where = ", ".join(f"{k}={_text(v)}" for k, v in zip(keys, row + column, strict=True))
    return f"{where}: two runs fall into this cell; name what differs in rows or cols"


def _pipes(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped_md(text: str) -> str:
    return re.sub(r"([|*<>\\`])", r"\\\1", text).replace("\n", " ")


def _escaped_tex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    for plain, tex in {
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "·": r"$\cdot$",
        "–": "--",
    }.items():
        text = text.replace(plain, tex)
    return text.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
