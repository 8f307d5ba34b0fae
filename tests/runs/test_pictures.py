import numpy as np
import pytest
from PIL import Image

from edgegen.runs.pictures import grid, picture_name, read_settings, write_png


def noise(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("prompt", ["a fox, noto style", "", "été 🦊 ${x} [a='b']", "a\nb\tc"])
def test_a_png_says_how_it_was_made(tmp_path, prompt):
    image = noise(16, 8, 0)
    settings = {"prompt": prompt, "seed": 3, "guidance": 7.5, "negative_prompt": None}
    path = write_png(tmp_path / "a.png", image, settings)
    assert read_settings(path) == settings
    with Image.open(path) as read:  # as any viewer reads it
        assert read.info["prompt"] == prompt
        assert read.info["seed"] == "3"
        assert np.array_equal(np.asarray(read), np.asarray(image))


def test_a_damaged_or_foreign_png_has_no_settings(tmp_path):
    path = write_png(tmp_path / "a.png", noise(64, 64, 0), {"seed": 1})
    data = path.read_bytes()
    for number, content in enumerate([data[: len(data) // 2], b"", b"no picture", data[:40]]):
        (tmp_path / f"{number}.png").write_bytes(content)
        assert read_settings(tmp_path / f"{number}.png") is None
    noise(8, 8, 0).save(tmp_path / "foreign.png")
    assert read_settings(tmp_path / "foreign.png") is None
    assert read_settings(tmp_path / "none.png") is None


def test_names_sort_by_number():
    names = [picture_name(number) for number in (0, 2, 10, 9_999, 10_000, 999_999)]
    assert names == sorted(names)
    assert len(set(names)) == len(names)


def test_a_grid_shows_every_pixel_unsmoothed():
    pictures = [noise(16, 16, seed) for seed in range(5)]
    captions = ["short", "x" * 500, "", "two\nlines", "日本 é 🦊"]
    sheet = np.asarray(grid(list(zip(pictures, captions, strict=True)), columns=2, least=32))
    assert sheet.shape[1] == 8 + 2 * (32 + 8)
    heights = {(sheet.shape[0] - 8) % 3, (sheet.shape[0] - 8) // 3}
    row = max(heights)
    for number, picture in enumerate(pictures):
        x, y = 8 + number % 2 * 40, 8 + number // 2 * row
        shown = sheet[y : y + 32, x : x + 32]
        assert np.array_equal(shown, np.asarray(picture).repeat(2, 0).repeat(2, 1))
    captioned = sheet[40:row, 8:40]
    assert captioned.min() < 128  # the first caption's ink
