"""Photographs and video frames: crops for training and testing an autoencoder.

The files come from packages of the ``photos`` extra and from folders that the user names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageSequence

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm"}
# Photographs among the example pictures of the two libraries.
PACKAGED = {
    "skimage/data": (
        "astronaut.png", "chelsea.png", "coffee.png", "color.png", "motorcycle_left.png",
        "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}  # fmt: skip
HELD_OUT = ("chelsea.png", "coffee.png", "flower.jpg", "carphone_pristine.mp4")


def packaged_photos() -> list[Path]:
    """The photographs inside scikit-image and scikit-learn, where they are installed."""
    paths = []
    for folder, names in PACKAGED.items():
        spec = find_spec(folder.split("/")[0])
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent.parent / folder
            paths += [root / name for name in names if (root / name).exists()]
    return paths


def find_media(folders: Sequence[str | Path], exclude: Sequence[str] = ()) -> list[Path]:
    """Pictures and videos under `folders`, sorted by name, without those that match `exclude`.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"photo folder {folder} does not exist")
        found += [p for p in folder.rglob("*") if p.suffix.lower() in PICTURES | VIDEOS]
    found = [p for p in found if not any(p.match(pattern) for pattern in exclude)]
    return sorted(found, key=lambda path: path.name)


def is_held_out(path: Path) -> bool:
    """True for the named test files and for one file in twenty of the others."""
    return path.name in HELD_OUT or hashlib.sha256(path.name.encode()).digest()[0] < 13


def read_frames(path: Path, most: int = 12, longest: int = 512) -> list[np.ndarray]:
    """The picture, or up to `most` frames spread over a clip: (H, W, 3) uint8 each.

    Pictures whose longer side exceeds `longest` are reduced to it; with a shorter side under 64
    pixels they are left out.
    """
    if path.suffix.lower() in VIDEOS:
        with av.open(str(path)) as container:
            frames = []
            every = 4
            for i, decoded in enumerate(container.decode(video=0)):
                if i % every:
                    continue
                frames.append(decoded.to_image())
                frames[-1].thumbnail((longest, longest), Image.Resampling.LANCZOS)
                if len(frames) > 8 * most:  # a long clip: only every other one so far
                    frames, every = frames[::2], 2 * every
        frames = frames[:: max(1, -(-len(frames) // most))]
    else:
        with Image.open(path) as picture:
            count = getattr(picture, "n_frames", 1)
            every = max(1, -(-count // most))
            sequence = enumerate(ImageSequence.Iterator(picture))
            frames = [frame.convert("RGB") for i, frame in sequence if i % every == 0]
    for frame in frames:
        frame.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return [np.asarray(frame) for frame in frames if min(frame.size) >= 64]


def random_crop(frame: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of random place and scale, mirrored half of the time: (size, size, 3) uint8."""
    height, width = frame.shape[:2]
    largest = min(height, width)
    side = int(np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest))))
    top = int(rng.integers(0, height - side + 1))
    left = int(rng.integers(0, width - side + 1))
    crop = Image.fromarray(frame[top : top + side, left : left + side])
    crop = crop.resize((size, size), Image.Resampling.LANCZOS)
    picture = np.array(crop)
    return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture
