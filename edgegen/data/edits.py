"""Edits that are exact rules: pure functions of a picture, (H, W, 3) uint8 to the same shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

Rule = Callable[[np.ndarray], np.ndarray]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Rows give red, green and blue of the result (W3C Filter Effects, `sepia(1)`).
SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
NIGHT = ((0.24, 0.10, 0.04), (0.08, 0.28, 0.10), (0.12, 0.22, 0.52))
# Seasons: a colour matrix and what is added to red, green and blue.
SEASONS = {
    "spring": (((0.78, 0.14, 0.08), (0.08, 0.98, 0.02), (0.22, 0.00, 0.70)), (34, 26, 30)),
    "summer": (((1.30, -0.10, -0.08), (-0.04, 1.20, -0.10), (-0.12, -0.22, 1.16)), (14, 10, -4)),
    "autumn": (((0.72, 0.52, 0.00), (0.24, 0.48, 0.06), (0.06, 0.10, 0.50)), (8, -4, -8)),
    "winter": (((0.52, 0.28, 0.06), (0.18, 0.62, 0.06), (0.18, 0.30, 0.44)), (52, 62, 78)),
}
HUES = {  # degrees on the HSV circle
    "red": 0,
    "orange": 28,
    "yellow": 54,
    "green": 120,
    "blue": 220,
    "purple": 278,
    "pink": 325,
}


def mixed(picture: np.ndarray, matrix: object, offset: object = 0) -> np.ndarray:
    """Every pixel times a 3 × 3 matrix, plus (3,) an offset in levels, rounded and clipped."""
    moved = picture.astype(np.float32) @ np.asarray(matrix, np.float32).T
    return _levels(moved + np.asarray(offset, np.float32))


def black_and_white(picture: np.ndarray) -> np.ndarray:
    """Luma in all three channels."""
    return mixed(picture, (LUMA, LUMA, LUMA))


def sepia(picture: np.ndarray) -> np.ndarray:
    """Brown as on old photographs (`SEPIA`)."""
    return mixed(picture, SEPIA)


def night(picture: np.ndarray) -> np.ndarray:
    """Dark and blue (`NIGHT`)."""
    return mixed(picture, NIGHT)


def inverted(picture: np.ndarray) -> np.ndarray:
    """255 minus every value."""
    return 255 - picture


def pencil_sketch(picture: np.ndarray) -> np.ndarray:
    """Luma divided by its own blur (colour dodge): dark lines on white paper.

    The blur's deviation is a 32nd of the shorter side, so a larger picture has the same lines.
    Both are raised by 24 levels, or the noise of dark places would be drawn.
    """
    grey = black_and_white(picture)[..., 0]
    blurred = Image.fromarray(grey).filter(ImageFilter.GaussianBlur(min(grey.shape) / 32))
    ratio = (grey.astype(np.float32) + 24) / (np.asarray(blurred, np.float32) + 24)
    return np.repeat(_levels(255 * ratio)[..., None], 3, 2)


def season(picture: np.ndarray, name: str) -> np.ndarray:
    """The colours of a season (`SEASONS`)."""
    return mixed(picture, *SEASONS[name])


def recoloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """The hue (`HUES`) of every pixel replaced; HSV saturation and value stay.

    So grey, white and black stay what they are.
    """
    pixels = picture.astype(np.float32)
    value, least = pixels.max(-1, keepdims=True), pixels.min(-1, keepdims=True)
    # HSV to RGB: a channel falls from value to `least` with its distance from the hue.
    sector = (np.array([5, 3, 1]) + HUES[colour] / 60) % 6
    share = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return _levels(value - (value - least) * share)


RULES: dict[str, Rule] = {
    "black_and_white": black_and_white,
    "sepia": sepia,
    "night": night,
    "inverted": inverted,
    "pencil_sketch": pencil_sketch,
}

PHOTO_EDITS: dict[str, Rule] = {
    **{f"rule/{name}": rule for name, rule in RULES.items()},
    **{f"season/{name}": partial(season, name=name) for name in SEASONS},
    **{f"colour/{name}": partial(recoloured, colour=name) for name in HUES},
}
"""The edits of photographs that need no teacher, by the names of `instructions`."""


def change(first: np.ndarray, second: np.ndarray) -> float:
    """Root of the mean squared difference of two pictures, with white at 1."""
    difference = first.astype(np.float32) - second.astype(np.float32)
    return float(np.sqrt(np.square(difference).mean()) / 255)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
