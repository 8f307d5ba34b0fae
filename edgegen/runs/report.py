"""Reports: one HTML file each that needs nothing beside it. Here that of a generation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup
from PIL import Image

from .atomic import write_atomic

HEADS = (
    "Part",
    "Parameters",
    "Calls a batch",
    "MACs, all",
    "MACs, conv + linear",
    "Share of MACs",
    "Time",
)
_SMALL = 192  # pixels: sides up to this are shown with their pixels sharp
_NAMES = {
    "text_encoder": "Text encoder",
    "text_encoder_2": "Text encoder 2",
    "unet": "UNet",
    "vae.encoder": "VAE encoder",
    "vae.decoder": "VAE decoder",
}


@dataclass(frozen=True)
class ReportPicture:
    """A picture in the report: its file, the caption below it, and a remark on pointing at it."""

    file: Path
    caption: str
    detail: str = ""


def write_report(
    path: str | Path,
    *,
    title: str,
    lead: str,
    pictures: Sequence[ReportPicture],
    cost: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    most: int = 200,
) -> Path:
    """Write the report to `path`, with the pictures, the style and everything else inside.

    Args:
        title, lead: the heading, and the sentence or two under it.
        pictures: in the order shown; those after the first `most` are only counted.
        cost: what `GenerationCost.result` gives, or None where it is not known.
        record: the content of `run.json`; what it does not hold is left out.
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
        left_out=max(0, len(pictures) - most),
        heads=HEADS,
        parts=rows,
        bar_label="Share of MACs: " + ", ".join(f"{row['name']} {row['cells'][4]}" for row in rows),
        total=_cells(_sum(parts)) if parts else [],
        notes=_notes(cost) if cost else [],
        **record_values(record),
    )
    return write_atomic(path, text)


def render(template: str, styles: Sequence[str] = (), **values: Any) -> str:
    """A page from a template beside this file, with `report.css` and `styles` written into it.

    Values are text, escaped by the template engine.
    """
    pages = Environment(autoescape=True, trim_blocks=True, loader=FunctionLoader(_file))
    css = "".join(map(_file, ("report.css", *styles)))
    return pages.get_template(template).render(style=Markup(css), **values)  # `>` stays as it is


def record_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `record.html`, the part of a page about how it came about, needs of a `run.json`."""
    return {"record": _record(record), "details": _details(record)}


def metric(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with a metric prefix: `metric(2.5e9)` is `2.50 G`, `metric(.004, "s")` is `4.00 ms`.

    Prefixes run from µ to P; 0 is plain.
    """
    prefixes = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ"}
    rounded = float(f"{value:.{digits - 1}e}")
    power = next((p for p in prefixes if abs(rounded) >= 10.0**p), 0 if value == 0 else -6)
    scaled = rounded / 10.0**power
    whole = len(str(int(abs(scaled))))
    return f"{scaled:.{max(0, digits - whole)}f} {prefixes[power]}{unit}".strip()


def _cells(part: Mapping[str, Any]) -> list[str]:
    calls, share, seconds = part["calls"], part["share"], part["seconds"]
    return [
        metric(part["params"]),
        "" if calls is None else f"{calls:g}",
        metric(part["gmacs_all"] * 1e9),
        metric(part["gmacs_conv_linear"] * 1e9),
        _percent(share),
        "" if seconds is None else metric(seconds, "s"),
    ]


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


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
        f"Times are wall time, the mean over {cost['images']} pictures{warm}; they hold for the "
        "machine below. What runs between the parts, such as the scheduler, is not in the rows.",
    ]
    if cost["uncounted"]:
        named = ", ".join(f"{name} ({times}×)" for name, times in cost["uncounted"].items())
        notes.append(f"Not counted, for want of a formula: {named}.")
    return notes


def _record(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, machine = record.get("settings", {}), record.get("machine", {})
    git = record.get("git", {})
    commit = git.get("sha") or git.get("reason", "")
    if git.get("dirty"):
        commit += f", with changes ({git.get('diff_sha256', '')[:12]})"
    threads = f", threads used by torch: {machine['threads']}" if "threads" in machine else ""
    size = f"{settings['width']} × {settings['height']} pixels" if "width" in settings else ""
    seeds = record.get("seeds") or []
    rows = [
        ("Command", record.get("command")),
        ("Started", (record.get("start") or "").replace("T", " ")[:19]),
        ("Model", settings.get("model")),
        ("Scheduler", settings.get("scheduler")),
        ("Steps", settings.get("steps")),
        ("Guidance", settings.get("guidance")),
        ("Size", size),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Code", commit),
        ("Device", record.get("device")),
        ("Machine", f"{machine['processor']}{threads}" if "processor" in machine else ""),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _details(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    files = [(Path(name).name, entry["sha256"]) for name, entry in record.get("files", {}).items()]
    groups = [
        ("Files used (SHA-256)", files),
        ("Package versions", list(record.get("versions", {}).items())),
    ]
    return [(name, rows) for name, rows in groups if rows]


def inlined(picture: ReportPicture) -> dict[str, Any]:
    """What a page's `img` needs of a picture: the whole file as `source`, its size, the texts."""
    data = picture.file.read_bytes()
    with Image.open(picture.file) as image:
        width, height, kind = image.width, image.height, Image.MIME[image.format or "PNG"]
    return {
        "source": f"data:{kind};base64,{base64.b64encode(data).decode()}",
        "caption": picture.caption,
        "detail": picture.detail,
        "width": width,
        "height": height,
        "small": max(width, height) <= _SMALL,
    }


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
