"""The report of a comparison: figures as one table, in Markdown, CSV and HTML, and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import write_atomic
from .comparison import ENDS, PLAIN, Row
from .page import ReportPicture, inlined, metric, record_values, render


@dataclass(frozen=True)
class Cell:
    """A figure and, smaller, its spread or interval."""

    value: str
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, whose figure it shows and how.

    `low` and `high` are the figures of the spread, shown in brackets; `more` one to add.
    """

    head: str
    name: str
    shown: Callable[[float], str]
    low: str = ""
    high: str = ""
    more: str = ""

    def cell(self, row: Row) -> Cell:
        """Empty where the row has no such figure, `unknown` where it could not be had."""
        value = row.get(self.name)
        if value is None:
            return Cell("unknown" if self.name in row else "")
        low, high, more = (row.get(name) for name in (self.low, self.high, self.more))
        if low is not None and high is not None:
            return Cell(self.shown(value), _interval(self.shown(low), self.shown(high)))
        return Cell(self.shown(value), "" if more is None else f"+{self.shown(more)}")


def columns(rows: Mapping[str, Row]) -> list[Column]:
    """The columns for which at least one row has a figure: errors and scores, then costs."""
    time, memory = "cost/seconds_per_image", "cost/peak_memory_mb"
    names = {name: None for row in rows.values() for name in row if name.startswith("quality/")}
    found = [
        _bounded(_quality_head(name), name, _signed if name.endswith(f"_vs_{PLAIN}") else _score)
        for name in names
        if not ENDS.search(name)[0]  # type: ignore[index]
    ]
    found += [
        Column("Time", time, _seconds, f"{time}_q25", f"{time}_q75"),
        Column("Time, p95", f"{time}_p95", _seconds),
        _bounded(f"Time ÷ {PLAIN}", "cost/time_ratio", _ratio),
        Column("UNet, all", "cost/tflops_all", _flop),
        Column("UNet, conv + linear", "cost/tflops_conv_linear", _flop),
        Column("Pipeline, all", "cost/total_tflops_all", _flop),
        Column("Pipeline, conv + linear", "cost/total_tflops_conv_linear", _flop),
        *([Column("UNet, bit operations", "cost/tbops", _bops)] if _other_bits(rows) else []),
        Column("Peak memory", memory, _megabytes, more="cost/peak_memory_rise_mb"),
        Column("Energy, measured", "cost/energy_measured_j", _joules),
        Column("Energy, estimated", "cost/energy_estimated_j", _joules),
    ]
    return [column for column in found if any(column.name in row for row in rows.values())]


def markdown(rows: Mapping[str, Row], notes: Sequence[str] = ()) -> str:
    """The table in Markdown, a row a method, and the notes as a list under it."""
    shown = columns(rows)
    lines = [["Method", *(column.head for column in shown)]]
    lines.append(["---", *["--:"] * len(shown)])
    for label, row in rows.items():
        cells = (column.cell(row) for column in shown)
        lines.append([label, *(f"{cell.value} {cell.detail}".strip() for cell in cells)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + ("\n" if notes else "") + "".join(f"- {note}\n" for note in notes)


def csv_table(rows: Mapping[str, Row]) -> str:
    """Every figure under its name, a row a method; empty where there is none."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return csv_text(
        ["method", *names],
        ([label, *(row.get(name) for name in names)] for label, row in rows.items()),
    )


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with `\\n` line ends; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def write_comparison(
    path: str | Path,
    *,
    title: str,
    lead: str,
    rows: Mapping[str, Row],
    notes: Sequence[str],
    methods: Mapping[str, str],
    seconds: Mapping[str, Sequence[float]],
    prompts: Sequence[str],
    pictures: Mapping[str, Sequence[Path]],
    left_out: int,
    record: Mapping[str, Any],
) -> Path:
    """Write the report, one HTML file with the pictures inside.

    Args:
        title, lead: the heading, and the sentence or two under it.
        rows: label → figures.
        notes: what the figures mean, a paragraph each.
        methods: label → its settings, as text.
        seconds: label → time a picture in each round.
        prompts: heads of the columns of pictures.
        pictures: label → a picture a prompt, all of one size; also rows without figures.
        left_out: how many prompts there are beside those.
        record: the content of `run.json`.
    """
    shown = columns(rows)
    longest = max((max(values) for values in seconds.values()), default=0.0) or 1.0
    return write_atomic(
        path,
        render(
            "comparison.html",
            ["comparison.css"],
            title=title,
            lead=lead,
            heads=["Method", *(column.head for column in shown)],
            rows=[(label, [column.cell(row) for column in shown]) for label, row in rows.items()],
            notes=notes,
            methods=methods,
            times=[
                (label, [f"{100 * value / longest:.2f}" for value in values])
                for label, values in seconds.items()
            ],
            longest=_seconds(longest),
            prompts=prompts,
            pictures=[
                (
                    label,
                    [
                        inlined(ReportPicture(file, f"{label}: {prompt}", prompt))
                        for file, prompt in zip(files, prompts, strict=True)
                    ],
                )
                for label, files in pictures.items()
            ],
            left_out=left_out,
            **record_values(record),
        ),
    )


def notes(
    rows: Mapping[str, Row], *, rounds: int, warmup: int, batch: int, threads: int, truth_steps: int
) -> list[str]:
    """What the table's figures mean, and on how much they rest.

    Args:
        rows: label → figures; what no row has is not explained.
        rounds, warmup, batch: as the times were measured; `threads`: of torch.
        truth_steps: of the solution that errors are taken to.
    """
    names = {name for row in rows.values() for name in row}
    found = [
        f"Time: median [quartiles] and 95th percentile of {rounds} rounds, after {warmup} that do "
        f"not count; pictures made at once: {batch}, threads: {threads}. In each round the methods "
        "take turns on the same prompts, in a random order.",
        f"Time ÷ {PLAIN}: median over rounds of the ratio within a round, with its 95 % interval.",
        "Work: both guidance branches and every step; 1 MAC is 2 FLOP. “All” counts "
        "convolutions, linear layers and attention products; “conv + linear” leaves the attention "
        "products out, as many papers do. The pipeline is the UNet, the text encoders and the "
        "decoder.",
    ]
    if _other_bits(rows):
        found.append(
            "Bit operations (BOPs): MACs × bits of the weight × bits of the activation. Simulated "
            "quantization saves these, and no time."
        )
    uncounted = max(row.get("cost/uncounted_ops") or 0 for row in rows.values())
    if uncounted:
        found.append(f"Operators without a formula, left out of the work: up to {uncounted:g}.")
    if "cost/peak_memory_mb" in names:
        found.append(
            "Peak memory: each method drew one batch in a process of its own; +: above what was "
            "held before, with the model loaded. On a CPU that of the process, libraries "
            "included, on CUDA that of tensors."
        )
    if "cost/energy_measured_j" in names:
        found.append("Energy, measured: the processor's counters (RAPL), of all that ran.")
    if "cost/energy_estimated_j" in names:
        found.append(
            "Energy, estimated: no measurement, but MACs and bytes of unfused operators at the "
            "energies of a 45 nm process (Horowitz 2014); it ranks, and is not this machine's."
        )
    count = next((row[name] for row in rows.values() for name in row if _is_count(name)), None)
    if any(name.startswith("quality/ode_") for name in names):
        found.append(
            f"Error: root mean squared difference, in pixels of 0 to 1 or in features, to the "
            f"truth, the plain model's own {truth_steps}-step solution from the same noise; less "
            f"is better. Minus {PLAIN}: the mean difference, picture by picture."
        )
    if count is not None and count > 1:
        few = " Methods that are close take 200 or more to tell apart." if count < 200 else ""
        found.append(f"Brackets behind scores: 95 % bootstrap over {count:g} pictures.{few}")
    return found


def _interval(low: str, high: str) -> str:
    """`[848, 863] ms` where both have one unit; numbers and units stay on one line."""
    numbers, units = zip(*(text.partition(" ")[::2] for text in (low, high)), strict=True)
    if units[0] == units[1]:
        return f"[{numbers[0]}, {numbers[1]}]" + (f"\u00a0{units[0]}" if units[0] else "")
    return f"[{low}, {high}]".replace(" ", "\u00a0").replace(",\u00a0", ", ")


def _is_count(name: str) -> bool:
    return name.startswith("quality/") and name.endswith("_n")


def _bounded(head: str, name: str, shown: Callable[[float], str]) -> Column:
    return Column(head, name, shown, f"{name}_lo", f"{name}_hi")


def _quality_head(name: str) -> str:
    score = name.removeprefix("quality/")
    base = score.removesuffix(f"_vs_{PLAIN}")
    if base == "ode_rmse":
        head = "Pixel error"
    elif base.startswith("ode_"):
        head = f"{base.removeprefix('ode_')} error"
    elif base.startswith("clip_"):
        head = f"Text score ({base.removeprefix('clip_')})"
    else:
        head = base
    return head if base == score else f"{head}, minus {PLAIN}"


def _seconds(value: float) -> str:
    return metric(value, "s")


def _flop(value: float) -> str:
    return metric(value * 1e12, "FLOP")


def _bops(value: float) -> str:
    return metric(value * 1e12, "BOP")


def _other_bits(rows: Mapping[str, Row]) -> bool:
    """Whether methods compute with numbers of different widths."""
    work = [(row.get("cost/tbops"), row.get("cost/tflops_all")) for row in rows.values()]
    return len({f"{bops / flops:.4g}" for bops, flops in work if bops and flops}) > 1


def _megabytes(value: float) -> str:
    return metric(value * 1e6, "B")


def _joules(value: float) -> str:
    return metric(value, "J")


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _score(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 0.1 else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
