"""Views of a picture: placement on a background, flips, captions. Pure functions of a generator."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .emoji import EmojiSet

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "gray": (136, 136, 136),
    "red": (214, 64, 56),
    "orange": (242, 152, 48),
    "yellow": (248, 218, 88),
    "green": (84, 168, 92),
    "blue": (64, 120, 208),
    "purple": (140, 88, 190),
    "pink": (244, 168, 196),
}


def place(rgba: np.ndarray, scale: float, dx: float, dy: float, flip: bool) -> np.ndarray:
    """Scale about the centre, shift and mirror on a transparent canvas of the same size.

    Args:
        rgba: (S, S, 4) uint8, straight alpha.
        scale: size of the drawing, 1 leaves it as it is.
        dx, dy: shift in pixels, right and down.
        flip: mirror left to right first.

    Returns:
        (S, S, 4) uint8, straight alpha.
    """
    if flip:
        rgba = rgba[:, ::-1]
    if (scale, dx, dy) == (1, 0, 0):
        return np.ascontiguousarray(rgba)
    size = rgba.shape[0]
    centre = size / 2
    inverse = (
        1 / scale,
        0,
        centre - (centre + dx) / scale,
        0,
        1 / scale,
        centre - (centre + dy) / scale,
    )
    # Premultiplied ("RGBa") while resampling: transparent pixels carry no colour into edges.
    picture = Image.fromarray(np.ascontiguousarray(rgba)).convert("RGBa")
    moved = picture.transform(
        (size, size), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC
    )
    return np.asarray(moved.convert("RGBA"))


def composite(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lay straight-alpha `rgba` (S, S, 4) over `background` (3,) or (S, S, 3), all uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * background
    return np.round(mixed).astype(np.uint8)


def random_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A flat colour, a linear gradient, stripes or smooth noise: (size, size, 3) uint8."""
    first, second = rng.integers(0, 256, (2, 3)).astype(np.float32)
    kind = rng.random()
    if kind < 0.4:
        return np.broadcast_to(first, (size, size, 3)).astype(np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    ramp = x * np.cos(angle) + y * np.sin(angle) + 0.5
    if kind < 0.7:
        mix = np.clip(ramp, 0, 1)
    elif kind < 0.85:
        mix = (np.sin(ramp * rng.uniform(10, 60)) > 0).astype(np.float32)
    else:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        mix = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / 255
    return (first + mix[..., None] * (second - first)).astype(np.uint8)


def random_caption(emoji: EmojiSet, index: int, rng: np.random.Generator) -> str:
    """The caption with a random article, up to two tags, and the style dropped at times."""
    picture = emoji.pictures[index]
    parts = [emoji.label(picture)]
    if rng.random() < 0.3:
        parts[0] = ("an " if parts[0][0] in "aeiou" else "a ") + parts[0]
    tags = [t for t in emoji.concepts[picture.concept].tags if t not in parts[0]]
    if tags and rng.random() < 0.2:
        parts += [str(t) for t in rng.choice(tags, min(len(tags), int(rng.integers(1, 3))), False)]
    if rng.random() < 0.95:
        parts.append(f"{picture.style} style")
    return ", ".join(parts)
