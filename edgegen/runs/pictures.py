"""Pictures of a run: PNG files that say how they were made, and grids with captions."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .atomic import write_atomic


def write_png(path: str | Path, image: Image.Image, settings: Mapping[str, Any]) -> Path:
    """Write a PNG whose text chunks hold the settings, atomically.

    Strings and numbers among the settings have a chunk each (`prompt`, `seed`, …, as image viewers
    show them); `settings` holds them all as one JSON object, as `read_settings` reads it.
    """
    text = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        text.add_text(key, str(value))
    text.add_text("settings", json.dumps(dict(settings), ensure_ascii=False, sort_keys=True))
    buffer = io.BytesIO()
    image.save(buffer, "png", pnginfo=text)
    # Not synced: a picture that a power failure damaged is found and made again.
    return write_atomic(path, buffer.getvalue(), sync=False)


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings a PNG was made with; None for no such file, another's, or a damaged one."""
    try:
        with Image.open(path) as image:
            image.load()
            settings = json.loads(image.info["settings"])
    except (OSError, KeyError, ValueError, SyntaxError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None


def picture_name(index: int) -> str:
    """File name of the picture number `index`; names sort by number, up to a million of them."""
    return f"{index:06d}.png"


def grid(
    pictures: Iterable[tuple[str | Path | Image.Image, str]],
    columns: int,
    *,
    least: int = 128,
) -> Image.Image:
    """Pictures in rows, each above its caption.

    Args:
        pictures: (file or image, caption) pairs, at least one, all of about the same size.
        columns: pictures a row.
        least: side in pixels below which pictures are enlarged by a whole factor, unsmoothed.
    """
    cells = [(_opened(picture), caption) for picture, caption in pictures]
    width = max(image.width for image, _ in cells)
    height = max(image.height for image, _ in cells)
    factor = max(1, -(-least // max(width, height)))
    width, height, gap = width * factor, height * factor, 8
    font = _font(12)
    lines = [_wrapped(caption, width, font) for _, caption in cells]
    columns = min(columns, len(cells))
    deep = max(len(line) for line in lines) * 15 + 4
    rows = -(-len(cells) // columns)
    size = (gap + columns * (width + gap), gap + rows * (height + deep + gap))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, ((image, _), line) in enumerate(zip(cells, lines, strict=True)):
        x = gap + number % columns * (width + gap)
        y = gap + number // columns * (height + deep + gap)
        big = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        canvas.paste(big, (x, y))
        draw.text((x, y + height + 2), "\n".join(line), fill="#333", font=font, spacing=3)
    return canvas


def _opened(picture: str | Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    with Image.open(picture) as image:
        return image.convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # matplotlib, a dependency, carries DejaVu: Pillow's own font knows few letters.
    try:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        return ImageFont.truetype(str(path), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def _wrapped(
    caption: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Sequence[str]:
    """At most three lines that fit `width`; what does not fit ends in an ellipsis."""
    text = " ".join(caption.split())[:400]
    letters = max(8, int(width / max(1.0, font.getlength("abcdefghijklmnopqrst ") / 21)))
    while letters > 4:
        lines = textwrap.wrap(text, letters, max_lines=3, placeholder="…") or [""]
        if max(font.getlength(line) for line in lines) <= width:
            return lines
        letters -= 1
    return [text[:letters]]
