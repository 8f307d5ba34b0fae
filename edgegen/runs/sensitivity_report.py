"""The report of a sensitivity analysis: which layers mind being quantized, and when."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..quantization.allocation import Bits
from ..quantization.sensitivity import KINDS, LayerSensitivity, Sensitivity
from .atomic import write_atomic
from .page import metric, record_values, render

_HEADS = {"weights": "W", "activations": "A", "both": "WA"}


@dataclass(frozen=True)
class Choice:
    """Bits for the layers, and what comes of them.

    Attributes:
        name: such as `4 and 8 bits`, or `mixed`.
        size_kb: of all layers; `gbops` of one call on one sample.
        error: of the model's output, as measured; `added` is the sum of the layers' own.
    """

    name: str
    size_kb: float
    gbops: float
    error: float
    added: float


@dataclass(frozen=True)
class SensitivityReport:
    """What the page shows.

    Attributes:
        bits: of each layer, by path, where a budget was given.
        choices: to compare, the mixed one among them.
    """

    model: str
    found: Sensitivity
    bits: Mapping[str, Bits] = field(default_factory=dict)
    choices: Sequence[Choice] = ()


def decibels(error: float) -> float:
    """Signal-to-quantization-noise ratio of an error relative to the signal's energy."""
    return math.inf if error <= 0 else -10 * math.log10(error)


def write_sensitivity(
    folder: str | Path, report: SensitivityReport, record: Mapping[str, Any]
) -> Path:
    """Write `report.html` (with `record`, the content of `run.json`); returns it."""
    found = report.found
    page = render(
        "sensitivity.html",
        ("sortable.css", "profile.css"),
        title=f"Sensitivity of {report.model}",
        lead="One layer quantized at a time, all others in full precision: how far that moves the "
        "output of the UNet along the model's own trajectories.",
        figures=_figures(found),
        maps=[
            {"source": _source(heat_map(found, kind, bits)), "title": _title(kind, bits)}
            for kind, bits in _lowest(found)
        ],
        heads=_heads(report),
        rows=[_row(layer, report) for layer in found.layers],
        choices=[_choice_row(choice) for choice in report.choices],
        **record_values(record),
    )
    return write_atomic(Path(folder) / "report.html", page)


def heat_map(found: Sensitivity, kind: str, bits: int) -> bytes:
    """PNG: the signal-to-noise ratio in dB, a row a layer, a column a timestep."""
    layers = _with(found, kind, bits)
    ratios = [[decibels(max(e, 1e-12)) for e in each.errors[kind][bits]] for each in layers]
    names = [layer.path.removeprefix("unet.") for layer in layers]
    figure = layers_figure({"": ratios}, names, found.times)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def layers_figure(
    maps: Mapping[str, Sequence[Sequence[float]]],
    layers: Sequence[str],
    times: Sequence[float],
    height: float = 0.115,
) -> Figure:
    """Heat maps side by side, each with a scale of its own.

    Args:
        maps: title → dB, [layer][timestep].
        layers: what to write beside each row; rows with an empty text have no tick.
        times: timesteps, as the columns go.
        height: of a row in inches.
    """
    size = (2.6 + len(maps) * (2.0 + 0.45 * len(times)), 0.9 + height * len(layers))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(maps), sharey=True, squeeze=False)[0], maps.items(), strict=True
    ):
        image = axes.imshow(values, aspect="auto", cmap="magma", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_xticks(range(len(times)), [f"{time:.0f}" for time in times], fontsize=6)
        named = [row for row, layer in enumerate(layers) if layer]
        axes.set_yticks(named, [layers[row] for row in named], fontsize=5)
        axes.set_xlabel("timestep", fontsize=7)
        bar = figure.colorbar(image, ax=axes, fraction=0.05)
        bar.set_label("dB", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    return figure


def _with(found: Sensitivity, kind: str, bits: int) -> list[LayerSensitivity]:
    return [layer for layer in found.layers if bits in layer.errors.get(kind, {})]


def _measures(found: Sensitivity) -> list[tuple[str, int]]:
    """(kind, bits), as columns of the table."""
    every = {
        (k, bits) for each in found.layers for k, widths in each.errors.items() for bits in widths
    }
    return [(kind, bits) for kind in KINDS for bits in sorted(b for k, b in every if k == kind)]


def _lowest(found: Sensitivity) -> list[tuple[str, int]]:
    """Each kind at its fewest bits, where differences show best."""
    measures = _measures(found)
    lowest = ((kind, [bits for k, bits in measures if k == kind]) for kind in KINDS)
    return [(kind, min(widths)) for kind, widths in lowest if widths]


def _title(kind: str, bits: int) -> str:
    what = {"weights": "Weights", "activations": "Activations", "both": "Weights and activations"}
    return f"{what[kind]} in {bits} bits"


def _figures(found: Sensitivity) -> list[dict[str, str]]:
    values = sum(layer.values for layer in found.layers)
    macs = sum(layer.macs for layer in found.layers)
    shown = [
        ("Layers", str(len(found.layers))),
        ("Timesteps", str(len(found.times))),
        ("Their weights", metric(values)),
        ("Their MACs, one call", metric(macs)),
    ]
    split = [(name, *value.partition(" ")[::2]) for name, value in shown]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in split]


def _heads(report: SensitivityReport) -> list[str]:
    measures = [f"{_HEADS[kind]}{bits} dB" for kind, bits in _measures(report.found)]
    chosen = ["Weight bits", "Activation bits"] if report.bits else []
    return ["Layer", "Kind", "Weights", "MACs", *measures, *chosen]


def _row(layer: LayerSensitivity, report: SensitivityReport) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = [
        {"text": layer.path, "value": layer.path},
        {"text": layer.kind, "value": layer.kind},
        {"text": f"{layer.values:,}", "value": layer.values},
        {"text": metric(layer.macs), "value": layer.macs},
    ]
    for kind, bits in _measures(report.found):
        known = bits in layer.errors.get(kind, {})
        ratio = decibels(layer.mean(kind, bits)) if known else math.nan
        text = f"{ratio:.1f}" if math.isfinite(ratio) else ("∞" if known else "")
        cells.append({"text": text, "value": ratio if math.isfinite(ratio) else 999})
    for width in report.bits.get(layer.path, (None, None)) if report.bits else ():
        cells.append({"text": "–" if width is None else str(width), "value": width or 32})
    return cells


def _choice_row(choice: Choice) -> list[str]:
    return [
        choice.name,
        f"{choice.size_kb:,.1f}",
        f"{choice.gbops:,.2f}",
        f"{decibels(choice.error):.2f}",
        f"{decibels(choice.added):.2f}",
    ]


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
