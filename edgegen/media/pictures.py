"""Folders of pictures, read one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB, upright, what is transparent on white.

    Sixteen bits are scaled to eight. Raises ValueError for a file that is damaged, no picture, or
    of more bits, whose range nobody knows; FileNotFoundError for none.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.has_transparency_data:
                rgba = ImageOps.exif_transpose(image).convert("RGBA")
                upright: Image.Image = Image.new("RGBA", rgba.size, "white")
                upright.alpha_composite(rgba)
            else:
                upright = _eight_bits(ImageOps.exif_transpose(image))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: damaged, or no picture ({reason})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Where Pillow would cut off what is above 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}: 8 or 16 bits a channel are read")
    return image


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures in a folder and the folders in it, by name, numbers in the order of counting.

    Endings play no part in the order, and hidden files none at all, so that `a/2.png` of one folder
    has the place of `a/2.jpg` of another. A picture file stands for itself.

    Raises FileNotFoundError where there is no such folder, ValueError where it holds no picture.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    found = [
        name
        for name in names
        if name.suffix.lower() in PICTURES and not any(part.startswith(".") for part in name.parts)
    ]
    if not found:
        raise ValueError(f"{folder}: holds no picture ({', '.join(PICTURES)})")
    return [folder / name for name in sorted(found, key=_order)]


class PictureFiles(Sequence[np.ndarray]):
    """Pictures that are read when they are asked for: `read_picture` of each of `files`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> PictureFiles: ...
    def __getitem__(self, place: int | slice) -> np.ndarray | PictureFiles:
        if isinstance(place, slice):
            return PictureFiles(self.files[place])
        return read_picture(self.files[place])


def _order(name: Path) -> tuple[list[tuple[int, str]], str]:
    stem = name.with_suffix("").as_posix()
    parts = re.split(r"(\d+)", stem)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], str(name)
