"""Building the emoji dataset from the npm packages that carry the drawings.

Needs the ``build`` extra (``resvg-py``) and ``npm`` when a package has to be fetched.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .emoji import COLOUR_STEP, SIZE, write_emoji_file

CAPTIONS = "emojibase-data@17.0.0"


@dataclass(frozen=True)
class Source:
    """One drawing style: its npm package, and the style whose character table names its icons."""

    package: str
    names_from: str | None = None

    @property
    def tarball(self) -> str:
        name, version = self.package.rsplit("@", 1)
        return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


SOURCES = {
    "noto": Source("@iconify-json/noto@1.2.9"),
    "noto-v1": Source("@iconify-json/noto-v1@1.2.5", names_from="noto"),
    "twemoji": Source("@iconify-json/twemoji@1.2.5"),
    "fluent": Source("@iconify-json/fluent-emoji@1.2.7", names_from="fluent-flat"),
    "fluent-flat": Source("@iconify-json/fluent-emoji-flat@1.2.6"),
    "fluent-3d": Source("@lobehub/fluent-emoji-3d@1.1.0"),
}


def _read(tarball: Path, member: str) -> bytes:
    with opened(tarball, f"holds no {member}") as archive:
        handle = archive.extractfile(f"package/{member}")
        if handle is None:
            raise KeyError(member)
        return handle.read()


@contextmanager
def opened(tarball: Path, lacking: str) -> Iterator[tarfile.TarFile]:
    """An npm tarball, read from the start; ValueError that tells what it lacks, where it is cut."""
    try:
        with tarfile.open(tarball) as archive:
            yield archive
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{tarball}: cut off, or {lacking}; fetch it again") from error


def tarballs(folder: Path) -> list[Path]:
    """The npm tarballs that `build_emoji` reads, whether they are there or not."""
    return [folder / source.tarball for source in [*SOURCES.values(), Source(CAPTIONS)]]


def fetch_packages(folder: Path) -> None:
    """`npm pack` every package of `SOURCES` that `folder` does not hold yet.

    Raises:
        FileNotFoundError: there is no npm.
        ValueError: npm could not get a package.
    """
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm is not installed: it fetches the packages of the drawings")
    folder.mkdir(parents=True, exist_ok=True)
    for source in [*SOURCES.values(), Source(CAPTIONS)]:
        if not (folder / source.tarball).exists():
            command = ["npm", "pack", "--silent", source.package]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                reason = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
                raise ValueError(f"npm pack {source.package}: {reason}")


def check_sources(folder: Path) -> None:
    """Raise in one line where `build_emoji` would fail for want of a package.

    Raises:
        FileNotFoundError: a tarball is missing.
        ValueError: the extra that draws is not installed.
    """
    for path in tarballs(folder):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such package; fetch_packages gets it")
    if find_spec("resvg_py") is None:
        raise ValueError("drawing SVG needs resvg-py: pip install 'edgegen[build]'")


def _key(hexcode: str) -> str:
    """Code points in lower case without the variation selector, which the packages use unevenly."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _svg_icons(folder: Path, style: str) -> Iterator[tuple[str, Any]]:
    """(key, function that draws the icon) for every character of an iconify package."""
    import resvg_py

    source = SOURCES[style]
    names_from = SOURCES[source.names_from] if source.names_from else source
    icons = json.loads(_read(folder / source.tarball, "icons.json"))
    names = json.loads(_read(folder / names_from.tarball, "chars.json"))
    for hexcode, name in names.items():
        alias = icons.get("aliases", {}).get(name, {})
        if set(alias) - {"parent"}:
            continue  # a rotated or flipped alias is another picture
        icon = icons["icons"].get(alias.get("parent", name))
        if icon is None:
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
        )

        def draw(svg: str = svg) -> Image.Image:
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
            return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

        yield _key(hexcode), draw


def _webp_icons(folder: Path, style: str) -> Iterator[tuple[str, Any]]:
    with opened(folder / SOURCES[style].tarball, "damaged") as archive:
        for member in archive:  # in order: seeking back in a gzip reads it again from the start
            path = Path(member.name)
            handle = archive.extractfile(member) if path.suffix == ".webp" else None
            if handle is None:
                continue
            data = handle.read()

            def draw(data: bytes = data) -> Image.Image:
                # Premultiplied while it shrinks, so that hidden colours do not bleed into edges.
                picture = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGBa")
                return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")

            yield _key(path.stem), draw


def quantize_colours(rgba: np.ndarray, step: int = COLOUR_STEP) -> np.ndarray:
    """Round channels to multiples of `step`, 0 and 255 kept: error ≤ step/2, 40 % fewer bytes."""
    rounded = np.round(rgba.astype(np.float32) / step) * step
    rounded = np.where(rgba >= 255 - step // 2, 255, np.minimum(rounded, 255)).astype(np.uint8)
    rounded[rounded[..., 3] == 0] = 0
    return rounded


def build_emoji(folder: Path, output: Path, step: int = COLOUR_STEP) -> dict[str, dict[str, int]]:
    """Rasterise every base form and single skin tone in six styles into one file.

    Args:
        folder: holds the npm tarballs (`fetch_packages`).
        output: the `.npz` to write.
        step: colour rounding, see `quantize_colours`.

    Returns:
        style → {"base": pictures, "tones": pictures}.

    Raises what `check_sources` raises.
    """
    check_sources(folder)
    entries = json.loads(_read(folder / Source(CAPTIONS).tarball, "en/data.json"))
    groups = json.loads(_read(folder / Source(CAPTIONS).tarball, "meta/groups.json"))
    concepts: list[dict[str, Any]] = []
    forms: dict[str, tuple[int, int]] = {}
    for entry in entries:
        if "group" not in entry:
            continue  # lone regional indicators
        for form in [entry, *entry.get("skins", [])]:
            tone = form.get("tone", 0)
            if isinstance(tone, int):  # pairs of people carry a list of tones
                forms[_key(form["hexcode"])] = (len(concepts), tone)
        concepts.append(
            {
                "hexcode": entry["hexcode"],
                "label": entry["label"],
                "tags": [tag for tag in entry.get("tags", []) if tag.isascii()],
                "group": groups["groups"][str(entry["group"])],
                "subgroup": groups["subgroups"][str(entry["subgroup"])],
            }
        )
    pictures, counts = [], {}
    for style, source in SOURCES.items():
        icons = _webp_icons if "3d" in source.package else _svg_icons
        drawn = {}
        for key, draw in icons(folder, style):
            if key in forms and key not in drawn:
                drawn[key] = quantize_colours(np.asarray(draw()), step)
        for key in sorted(drawn, key=lambda k: forms[k]):
            pictures.append((*forms[key], style, drawn[key]))
        tones = sum(forms[key][1] > 0 for key in drawn)
        counts[style] = {"base": len(drawn) - tones, "tones": tones}
    write_emoji_file(output, concepts, pictures)
    return counts
