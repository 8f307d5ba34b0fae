"""Pages: HTML that needs nothing beside it, with the pictures, the style and the record inside."""

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

_SMALL = 192  # pixels: sides up to this are shown with their pixels sharp


@dataclass(frozen=True)
class ReportPicture:
    """A picture in the report: its file, the caption below it, and a remark on pointing at it."""

    file: Path
    caption: str
    detail: str = ""


@dataclass(frozen=True)
class ReportClip:
    """A video in the report, of a kind that browsers play, the caption below it, and its credit."""

    file: Path
    caption: str
    credit: str = ""


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


def inlined_clip(clip: ReportClip) -> dict[str, str]:
    """What a page's `video` needs of a clip: the whole file as `source`, and the texts."""
    data = base64.b64encode(clip.file.read_bytes()).decode()
    kind = clip.file.suffix.removeprefix(".")
    source = f"data:video/{kind};base64,{data}"
    return {"source": source, "caption": clip.caption, "credit": clip.credit}


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


def percent(share: float | None) -> str:
    """A share of 0 to 1 as text; "" for None."""
    if share is None:
        return ""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


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
    # With the folder: a pipeline has several files of one name.
    files = [
        ("/".join(Path(name).parts[-2:]), entry["sha256"])
        for name, entry in record.get("files", {}).items()
    ]
    groups = [
        ("Files used (SHA-256)", files),
        ("Package versions", list(record.get("versions", {}).items())),
    ]
    return [(name, rows) for name, rows in groups if rows]


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
