"""What was quantized and what was not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..cost.summary import text_table
from ..sampling.steps import StepClock
from .modules import Quantized
from .plan import Plan


@dataclass(frozen=True)
class Row:
    """One quantized layer or attention.

    Attributes:
        path: with the part's name in front.
        kind: `Linear`, `Conv2d` or `Attention`.
        weights, inputs: how they are quantized, in words.
        values: weights, and `plain_bytes`, `stored_bytes`: what the layer takes before and after,
            bias and scales included; all 0 for attention.
    """

    path: str
    kind: str
    weights: str = "–"
    inputs: str = "–"
    values: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0


@dataclass
class Report:
    """What a spec did to a pipeline.

    Attributes:
        rows: all that is quantized.
        skipped: path → why it is left as it is.
        nearest: see `Plan`.
        steps: the clock that tells the timestep to scales by groups of timesteps; None without any.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    steps: StepClock | None = None
    nearest: list[str] = field(default_factory=list)

    @property
    def plain_bytes(self) -> int:
        return sum(row.plain_bytes for row in self.rows)

    @property
    def stored_bytes(self) -> int:
        """Of all quantized layers, scales and biases included."""
        return sum(row.stored_bytes for row in self.rows)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "quantized": [vars(row) for row in self.rows],
            "skipped": dict(self.skipped),
            "nearest": list(self.nearest),
        }

    def table(self) -> str:
        """All quantized layers, then what was left out, by reason."""
        rows = [
            (row.path, row.kind, row.weights, row.inputs, f"{row.values:,}", _kb(row.stored_bytes))
            for row in self.rows
        ]
        values = sum(row.values for row in self.rows)
        rows.append(("total", "", "", "", f"{values:,}", _kb(self.stored_bytes)))
        heads = ("layer", "kind", "weights", "inputs", "values", "kB stored")
        reasons = Counter(self.skipped.values())
        remarks = [f"Left as they are: {n} ({reason})" for reason, n in reasons.most_common()]
        if self.nearest:
            remarks.append(f"Rounded to nearest, not by gptq: {len(self.nearest)}")
        saved = f"{_kb(self.plain_bytes)} kB before, {_kb(self.stored_bytes)} kB after"
        return "\n".join([text_table(heads, rows), saved, *remarks])


def report_of(plan: Plan, steps: StepClock | None) -> Report:
    """The report of a plan."""
    rows = [_row(path, layer, twin) for path, (layer, twin) in plan.twins.items()]
    for path, (_, processor) in plan.processors.items():
        query: Any = processor.query
        rows.append(Row(path, "Attention", inputs=query.extra_repr()))
    return Report(rows, dict(plan.skipped), steps, list(plan.nearest))


def _row(path: str, layer: Any, twin: Quantized) -> Row:
    plain = sum(p.nbytes for p in layer.parameters(recurse=False))
    return Row(
        path,
        type(layer).__name__,
        "–" if twin.stored is None else twin.stored.extra_repr(),
        "–" if twin.inputs is None else twin.inputs.extra_repr(),
        layer.weight.numel(),
        plain,
        twin.stored_bytes,
    )


def _kb(size: int) -> str:
    return f"{size / 1000:,.1f}"
