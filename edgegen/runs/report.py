"""The report of a generation, one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cost.summary import uncounted_remark
from .atomic import write_atomic
from .page import (
    ReportClip,
    ReportPicture,
    inlined,
    inlined_clip,
    metric,
    percent,
    record_values,
    render,
)

HEADS = (
    "Part",
    "Parameters",
    "Calls a batch",
    "MACs, all",
    "MACs, conv + linear",
    "Share of MACs",
    "Time",
)
_NAMES = {
    "text_encoder": "Text encoder",
    "text_encoder_2": "Text encoder 2",
    "unet": "UNet",
    "vae.encoder": "VAE encoder",
    "vae.decoder": "VAE decoder",
}


def write_report(
    path: str | Path,
    *,
    title: str,
    lead: str,
    pictures: Sequence[ReportPicture],
    cost: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    clips: Sequence[ReportClip] = (),
    most: int = 200,
) -> Path:
    """Write the report to `path`, with the pictures, the style and everything else inside.

    Args:
        title, lead: the heading, and the sentence or two under it.
        pictures: in the order shown; those after the first `most` are only counted.
        cost: what `GenerationCost.result` gives, or None where it is not known.
        record: the content of `run.json`; what it does not hold is left out.
        clips: edited videos, each beside its source.
    """
    parts = list(cost["parts"]) if cost else []
    rows = [
        {"name": _NAMES.get(part["name"], part["name"]), "cells": _cells(part)}
        | {"share": part["share"], "grow": f"{part['share'] or 0:.4f}"}
        for part in parts
    ]
    text = render(
        "report.html",
        title=title,
        lead=lead,
        figures=_figures(cost, record),
        pictures=[inlined(picture) for picture in pictures[:most]],
        clips=[inlined_clip(clip) for clip in clips],
        left_out=max(0, len(pictures) - most),
        heads=HEADS,
        parts=rows,
        bar_label="Share of MACs: " + ", ".join(f"{row['name']} {row['cells'][4]}" for row in rows),
        total=_cells(_sum(parts)) if parts else [],
        notes=_notes(cost) if cost else [],
        **record_values(record),
    )
    return write_atomic(path, text)


def _cells(part: Mapping[str, Any]) -> list[str]:
    calls, share, seconds = part["calls"], part["share"], part["seconds"]
    return [
        metric(part["params"]),
        "" if calls is None else f"{calls:g}",
        metric(part["gmacs_all"] * 1e9),
        metric(part["gmacs_conv_linear"] * 1e9),
        percent(share),
        "" if seconds is None else metric(seconds, "s"),
    ]


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"calls": None, "share": 1.0}
    for key in ("params", "gmacs_all", "gmacs_conv_linear", "seconds"):
        total[key] = sum(part[key] or 0 for part in parts)
    return total


def _figures(cost: Mapping[str, Any] | None, record: Mapping[str, Any]) -> list[dict[str, str]]:
    settings = record.get("settings", {})
    figures = [("Denoising steps", str(settings["steps"]))] if "steps" in settings else []
    if cost:
        flops = cost["metrics"].get("cost/total_tflops_all")
        if flops is not None:
            figures.append(("Work a picture", metric(flops * 1e12, "FLOP")))
        figures.append(("Time a picture", metric(cost["metrics"]["cost/seconds_per_image"], "s")))
        params = cost["metrics"].get("cost/total_params")
        if params is not None:
            figures.append(("Parameters", metric(params)))
    split = [(name, *value.partition(" ")[::2]) for name, value in figures]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in split]


def _notes(cost: Mapping[str, Any]) -> list[str]:
    warm = " after a first batch that is not counted" if cost["warm"] else ", warm-up included"
    notes = [
        "A MAC is one multiplication with its addition, two FLOPs. Two conventions: “all” counts "
        "convolutions, linear layers and attention products; “conv + linear” leaves the attention "
        "products out, as many papers do. Both guidance branches and every step are in.",
        f"Times are wall time, medians over batches, {cost['images']} pictures{warm}; they hold "
        "for the machine below. What runs between the parts, such as the scheduler, is not in the "
        "rows.",
    ]
    if cost["uncounted"]:
        notes.append(uncounted_remark(cost["uncounted"]) + ".")
    return notes
