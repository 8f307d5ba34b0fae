"""Small crops with paintings by a teacher that needs no package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgegen.data import photos
from edgegen.data.instructions import PAINTINGS
from edgegen.data.painting import build_crops

SIZE = 32


def paint(picture: np.ndarray) -> np.ndarray:
    """Every painting is the picture with its channels rolled and lowered by its own number."""
    shifted = [np.roll(picture, n, 2) // (n + 1) for n in range(1, len(PAINTINGS) + 1)]
    return np.stack(shifted)


def stills(folder: Path, count: int = 4) -> list[Path]:
    """`count` random stills to train on, and two named as held-out ones."""
    folder.mkdir(exist_ok=True)
    names = [f"{n}.png" for n in range(200) if not photos.is_held_out(Path(f"{n}.png"))]
    paths = []
    for seed, name in enumerate([*names[:count], "coffee.png", "flower.jpg"]):
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((110, 90), Image.Resampling.BICUBIC).save(folder / name)
        paths.append(folder / name)
    return paths


def crops_folder(root: Path, train: int = 6, held_out: int = 12) -> Path:
    """A folder as `scripts/build_edits.py` writes it, of crops of 32 pixels."""
    build_crops(
        root / "crops", stills(root / "stills"), paint, "none", size=SIZE, train=train,
        held_out=held_out,
    )  # fmt: skip
    return root / "crops"
