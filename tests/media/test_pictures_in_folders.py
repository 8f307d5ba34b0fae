from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgegen.media.pictures import PictureFiles, find_pictures, read_picture


def colour(path: Path, mode: str = "RGB", value: object = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), value).save(path)
    return path


def test_numbers_are_in_the_order_of_counting(tmp_path: Path) -> None:
    for name in ("10.png", "9.PNG", "a2/1.png", "a10/1.webp", ".b/3.png", ".4.png"):
        colour(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    found = [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)]
    assert found == ["9.PNG", "10.png", "a2/1.png", "a10/1.webp"]
    assert find_pictures(tmp_path / "10.png") == [tmp_path / "10.png"]


def test_endings_play_no_part(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/1b.png", "c/1.jpg", "c/1b.bmp"):
        colour(tmp_path / name)
    stems = [[path.stem for path in find_pictures(tmp_path / x)] for x in "bc"]
    assert stems[0] == stems[1]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 7, (7, 7, 7)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (0, 0), (255, 255, 255)),
    ],
)
def test_every_mode_is_rgb_on_white(mode: str, value, expected, tmp_path: Path) -> None:
    picture = read_picture(colour(tmp_path / "x.png", mode, value))
    assert picture.shape == (3, 4, 3)
    assert picture.dtype == np.uint8
    assert (picture == expected).all()


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").shape == (4, 3, 3)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"none", "empty": b""}[damage])
    with pytest.raises(ValueError, match="damaged, or no picture") as error:
        read_picture(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no picture"):
        find_pictures(tmp_path)


def test_pictures_are_read_when_asked_for(tmp_path: Path) -> None:
    files = [colour(tmp_path / f"{n}.png", value=(n, n, n)) for n in range(4)]
    pictures = PictureFiles(files)
    files[0].unlink()
    assert len(pictures) == 4
    assert [picture[0, 0, 0] for picture in pictures[1:3]] == [1, 2]
    with pytest.raises(FileNotFoundError):
        pictures[0]


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif"])
def test_sixteen_bits_are_scaled(name: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert np.array_equal(found, np.arange(256).reshape(16, 16, 1).repeat(3, 2))


def test_other_ranges_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif: .*mode F: 8 or 16 bits"):
        read_picture(tmp_path / "f.tif")
