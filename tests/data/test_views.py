from __future__ import annotations

import re

import numpy as np
import pytest

from edgegen.data.emoji import TONES, EmojiSet
from edgegen.data.modules import to_tensor
from edgegen.data.stream import sample_rng
from edgegen.data.views import BACKGROUNDS, composite, place, random_background, random_caption


def drawing() -> np.ndarray:
    """Something without symmetry, opaque on transparent ground: (64, 64, 4) uint8."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:64, 0:64]
    inside = (x > 10) & (x < 30) & (y > 25) & (y < 50)
    colours = np.concatenate([rng.integers(0, 256, (64, 64, 3)), np.full((64, 64, 1), 255)], -1)
    return np.where(inside[..., None], colours, 0).astype(np.uint8)


def test_composite_by_hand() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    over = composite(rgba, np.array([0, 50, 255]))
    # 51/255 = 0.2: 0.2 · (200, 100, 0) + 0.8 · (0, 50, 255)
    np.testing.assert_array_equal(over, [[[200, 100, 0], [0, 50, 255], [40, 60, 204]]])


def test_composite_over_a_picture() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    ground = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(composite(rgba, ground), ground)


def test_place_identity_and_flip() -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    np.testing.assert_array_equal(place(rgba, 1, 0, 0, flip=False), rgba)
    np.testing.assert_array_equal(place(rgba, 1, 0, 0, flip=True), np.flip(rgba, 1))


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-3, 0), (0, 5), (4, -2), (70, 0)])
def test_whole_shifts_move_pixels(dx: int, dy: int) -> None:
    rgba = drawing()
    wanted = np.zeros_like(rgba)
    y, x = np.nonzero(np.ones((64, 64), bool))
    inside = (x + dx >= 0) & (x + dx < 64) & (y + dy >= 0) & (y + dy < 64)
    wanted[y[inside] + dy, x[inside] + dx] = rgba[y[inside], x[inside]]
    np.testing.assert_array_equal(place(rgba, 1, dx, dy, flip=False), wanted)
    flipped = place(rgba[:, ::-1], 1, dx, dy, flip=True)
    np.testing.assert_array_equal(flipped, wanted)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25])
def test_scale_is_about_the_centre(scale: float) -> None:
    y, x = np.mgrid[0:64, 0:64] + 0.5
    disc = (x - 32) ** 2 + (y - 32) ** 2 < 20**2
    rgba = np.where(disc[..., None], [250, 0, 0, 255], 0).astype(np.uint8)
    moved = place(rgba, scale, 0, 0, flip=False)
    alpha = moved[..., 3] / 255
    assert alpha.sum() == pytest.approx(np.pi * (20 * scale) ** 2, rel=0.02)
    assert (alpha * x).sum() / alpha.sum() == pytest.approx(32, abs=0.05)
    assert (alpha * y).sum() / alpha.sum() == pytest.approx(32, abs=0.05)
    # No darkening at the edge: colour is resampled premultiplied.
    assert (moved[alpha > 0.2][:, 0] > 240).all()


def test_backgrounds_are_distinct_colours() -> None:
    assert tuple(BACKGROUNDS["white"]) == (255, 255, 255)
    colours = np.array(list(BACKGROUNDS.values()))
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert apart.min() > 40
    red, green, blue = (np.array(BACKGROUNDS[name]) for name in ("red", "green", "blue"))
    assert [c.argmax() for c in (red, green, blue)] == [0, 1, 2]


def test_random_backgrounds_are_a_function_of_the_generator() -> None:
    kinds = set()
    for number in range(60):
        ground = random_background(sample_rng(0, number), 64)
        assert (ground.shape, ground.dtype) == ((64, 64, 3), np.uint8)
        np.testing.assert_array_equal(ground, random_background(sample_rng(0, number), 64))
        colours = len(np.unique(ground.reshape(-1, 3), axis=0))
        kinds.add("flat" if colours == 1 else "stripes" if colours == 2 else "smooth")
    assert kinds == {"flat", "stripes", "smooth"}


def test_to_tensor_covers_the_range() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[0, 1] = (255, 0, 51)
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 4, 6)
    np.testing.assert_allclose(tensor[:, 0, 1].numpy(), [1, -1, -0.6], atol=1e-6)


def test_random_captions_say_what_is_drawn() -> None:
    emoji = EmojiSet()
    styles = articles = tagged = 0
    count = 2000
    for number in range(count):
        index = number * 7 % len(emoji)
        caption = random_caption(emoji, index, sample_rng(1, number))
        assert caption == random_caption(emoji, index, sample_rng(1, number))
        picture = emoji.pictures[index]
        label = emoji.concepts[picture.concept].label
        rest = re.fullmatch(rf"(an? )?{re.escape(label)}(.*)", caption)
        assert rest, caption
        if rest[1]:
            articles += 1
            assert (rest[1] == "an ") == (label[0] in "aeiou")
        tail = rest[2]
        if picture.tone:
            assert tail.startswith(f", {TONES[picture.tone]} skin")
            tail = tail.removeprefix(f", {TONES[picture.tone]} skin")
        ending = f", {picture.style} style"
        styles += tail.endswith(ending)
        tags = [tag for tag in tail.removesuffix(ending).split(", ") if tag]
        tagged += bool(tags)
        assert len(tags) <= 2
        assert set(", ".join(tags).split(", ")) - {""} <= {
            part for tag in emoji.concepts[picture.concept].tags for part in (tag, *tag.split(", "))
        }
    assert styles / count == pytest.approx(0.95, abs=0.02)
    assert articles / count == pytest.approx(0.3, abs=0.04)
    assert tagged / count == pytest.approx(0.2, abs=0.04)
