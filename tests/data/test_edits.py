from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgegen.data import edits

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def test_sepia_is_the_written_matrix() -> None:
    """W3C Filter Effects Module Level 1, `sepia(1)`, pixel by pixel."""
    found = edits.sepia(PICTURE)
    for place in np.ndindex(PICTURE.shape[:2]):
        r, g, b = map(int, PICTURE[place])
        wanted = [
            0.393 * r + 0.769 * g + 0.189 * b,
            0.349 * r + 0.686 * g + 0.168 * b,
            0.272 * r + 0.534 * g + 0.131 * b,
        ]
        assert np.abs(found[place] - np.clip(wanted, 0, 255)).max() <= 0.51


def test_black_and_white_and_inverted_are_pillows() -> None:
    image = Image.fromarray(PICTURE)
    grey = edits.black_and_white(PICTURE)
    assert np.abs(grey[..., 0] - np.asarray(image.convert("L")).astype(int)).max() <= 1
    assert (grey == grey[..., :1]).all()
    assert np.array_equal(edits.inverted(PICTURE), np.asarray(ImageOps.invert(image)))


@pytest.mark.parametrize("colour", edits.HUES)
def test_recolouring_replaces_the_hue_of_hsv(colour: str) -> None:
    found = edits.recoloured(PICTURE, colour)
    for place in np.ndindex(PICTURE.shape[:2]):
        _, saturation, value = colorsys.rgb_to_hsv(*(PICTURE[place] / 255))
        wanted = colorsys.hsv_to_rgb(edits.HUES[colour] / 360, saturation, value)
        assert np.abs(found[place] - np.array(wanted) * 255).max() <= 0.51
    grey = edits.black_and_white(PICTURE)
    assert np.array_equal(edits.recoloured(grey, colour), grey)


def test_a_sketch_draws_edges_on_white() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert (edits.pencil_sketch(flat) == 255).all()
    flat[:, 32:] = 180
    drawn = edits.pencil_sketch(flat)
    # The dark side of an edge is darker than its surroundings; far from it all is white.
    assert drawn[32, 31, 0] < 200
    assert (drawn[:, :20] == 255).all()
    assert (drawn[:, 44:] == 255).all()
    # A picture twice as large has the same lines, twice as wide.
    large = edits.pencil_sketch(flat.repeat(2, 0).repeat(2, 1))
    small = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - drawn).max() < 12


def test_seasons_and_night_move_colours_as_their_names_say() -> None:
    meadow = np.full((4, 4, 3), (70, 140, 60), np.uint8)
    made = {name: edits.season(meadow, name)[0, 0].astype(int) for name in edits.SEASONS}
    assert made["autumn"][0] > made["autumn"][1] > made["autumn"][2]  # orange
    assert made["winter"].sum() > meadow[0, 0].sum()  # lighter
    assert np.ptp(made["winter"]) < np.ptp(meadow[0, 0].astype(int))  # and greyer
    assert np.ptp(made["summer"]) > np.ptp(meadow[0, 0].astype(int))
    night = edits.night(meadow)[0, 0].astype(int)
    assert night.sum() < 0.6 * meadow[0, 0].astype(int).sum()
    assert edits.night(np.full((1, 1, 3), 200, np.uint8))[0, 0].argmax() == 2


@pytest.mark.parametrize("name", edits.PHOTO_EDITS)
def test_rules_are_pure(name: str) -> None:
    before = PICTURE.copy()
    found = edits.PHOTO_EDITS[name](PICTURE)
    assert np.array_equal(PICTURE, before)
    assert found.shape == PICTURE.shape
    assert found.dtype == np.uint8
    assert np.array_equal(edits.PHOTO_EDITS[name](PICTURE.copy()), found)
    assert edits.change(PICTURE, found) > 0.03


def test_change_is_a_root_mean_square() -> None:
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert edits.change(black, grey) == pytest.approx(0.2)
    grey[0] = 0
    assert edits.change(black, grey) == pytest.approx(np.sqrt(0.5) * 0.2)
