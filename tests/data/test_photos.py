from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edgegen.data import photos


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_media_are_found_by_name_and_pattern(tmp_path: Path) -> None:
    for name in ("b/two.PNG", "a/three.mp4", "one.jpg", "notes.txt", "api_1.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = photos.find_media([tmp_path], exclude=["api_*"])
    assert [path.name for path in found] == ["one.jpg", "three.mp4", "two.PNG"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        photos.find_media([tmp_path / "nowhere"])


def test_one_file_in_twenty_is_held_out() -> None:
    held = [photos.is_held_out(Path(f"/x/{number}.jpg")) for number in range(5000)]
    assert np.mean(held) == pytest.approx(0.05, abs=0.01)
    assert all(photos.is_held_out(Path(name)) for name in photos.HELD_OUT)
    assert photos.is_held_out(Path("/a/7.jpg")) == photos.is_held_out(Path("/b/7.jpg"))


def test_packaged_photos_exist() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    found = photos.packaged_photos()
    names = {path.name for path in found}
    assert {"astronaut.png", "china.jpg"} <= names
    assert {name for name in names if photos.is_held_out(Path(name))} >= {"coffee.png"}
    assert min(min(photos.read_frames(path)[0].shape[:2]) for path in found[:3]) >= 64


def test_pictures_are_reduced_and_small_ones_left_out(tmp_path: Path) -> None:
    picture(100, 80).save(tmp_path / "exact.png")
    picture(1024, 512).save(tmp_path / "large.png")
    picture(100, 60).save(tmp_path / "small.png")
    (exact,) = photos.read_frames(tmp_path / "exact.png")
    np.testing.assert_array_equal(exact, np.asarray(picture(100, 80)))
    assert photos.read_frames(tmp_path / "large.png")[0].shape == (256, 512, 3)
    assert photos.read_frames(tmp_path / "small.png") == []


def test_frames_are_spread_over_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (8 * n, 0, 0)) for n in range(30)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    read = photos.read_frames(tmp_path / "a.webp", most=5)
    assert [int(frame[0, 0, 0]) // 8 for frame in read] == [0, 6, 12, 18, 24]


def test_frames_of_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for n in range(40):
            frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), (6 * n, 6 * n, 6 * n)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    read = photos.read_frames(tmp_path / "a.mp4", most=5)
    assert [frame.shape for frame in read] == [(64, 96, 3)] * 5
    # Every fourth frame of the clip, and of these ten every second.
    np.testing.assert_allclose([f.mean() for f in read], [0, 48, 96, 144, 192], atol=4)


def test_crops_lie_inside_and_are_mirrored_half_of_the_time() -> None:
    # Brightness names the column, so a crop tells its place, its scale and whether it is mirrored.
    frame = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(100, 0)
    mirrored, widths = 0, []
    for number in range(200):
        crop = photos.random_crop(frame, 64, np.random.default_rng(number)).astype(int)
        assert crop.shape == (64, 64, 3)
        slope = (crop[32, 60, 0] - crop[32, 3, 0]) / 57
        mirrored += slope < 0
        widths.append(abs(slope) * 64)
    assert 70 < mirrored < 130
    assert 62 < min(widths) < 67
    assert 94 < max(widths) < 102


def test_a_crop_larger_than_the_frame_is_scaled_up() -> None:
    frame = np.zeros((40, 50, 3), np.uint8)
    assert photos.random_crop(frame, 64, np.random.default_rng(0)).shape == (64, 64, 3)
