"""Animated drawings in several skin tones: the embedded ones, and how they were taken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgegen.data.animated import AnimatedTones, write_animated
from edgegen.data.emoji import EmojiSet
from edgegen.data.held_out_pairs import half_of

SKIN = {"1f44b": (250, 200, 0), "1f44b-1f3fb": (240, 200, 180), "1f44b-1f3ff": (60, 40, 30)}


def package(path: Path, lengths: dict[str, int]) -> Path:
    """Squares of the colour of a skin that move to the right."""
    with tarfile.open(path, "w:gz") as archive:
        for name, length in lengths.items():
            frames = []
            for place in range(length):
                frame = Image.new("RGB", (64, 64), "white")
                frame.paste(SKIN[name], (place * 4, 16, place * 4 + 24, 48))
                frames.append(frame)
            data = io.BytesIO()
            frames[0].save(data, "webp", save_all=True, append_images=frames[1:], lossless=True)
            info = tarfile.TarInfo(f"package/assets/{name}.webp")
            info.size = len(data.getvalue())
            archive.addfile(info, io.BytesIO(data.getvalue()))
    return path


def test_tones_move_as_one(tmp_path: Path) -> None:
    tarball = package(tmp_path / "a.tgz", dict.fromkeys(SKIN, 9))
    file = tmp_path / "clips" / "animated.npz"
    assert write_animated(tarball, file, ["1f44b"], ["light", "dark"], size=32, frames=5) == 3
    tones = AnimatedTones(half_of("1f44b"), file, size=32)
    assert tones.asks == [("1f44b", "dark"), ("1f44b", "light")]
    plain, dark = tones.clip("1f44b"), tones.clip("1f44b", "dark")
    assert plain.shape == dark.shape == (5, 32, 32, 3)
    for number, (frame, other) in enumerate(zip(plain, dark, strict=True)):
        middle = number * 4 + 6  # every second of nine frames, at half the size
        assert np.abs(frame[16, middle].astype(int) - SKIN["1f44b"]).max() < 12
        assert np.abs(other[16, middle].astype(int) - SKIN["1f44b-1f3ff"]).max() < 12
        assert frame[2, 2].min() > 245


@pytest.mark.parametrize(
    ("lengths", "subject", "tone", "words"),
    [
        ({"1f44b": 3}, "1f44b", "dark", "holds no animation 1f44b_dark"),
        ({"1f44b": 3, "1f44b-1f3ff": 4}, "1f44b", "dark", "of 1f44b differ in length"),
        ({"1f44b": 3}, "1f44b", "blue", "tones=blue: allowed are light, medium-light"),
    ],
)
def test_mistakes(
    lengths: dict[str, int], subject: str, tone: str, words: str, tmp_path: Path
) -> None:
    tarball = package(tmp_path / "a.tgz", lengths)
    with pytest.raises(ValueError, match=words):
        write_animated(tarball, tmp_path / "animated.npz", [subject], [tone])
    assert not (tmp_path / "animated.npz").exists()


def test_the_embedded_ones() -> None:
    """Both halves have subjects that are held out from all training, and edits that change much."""
    emoji = EmojiSet(None, tones=True)
    held = {emoji.concepts[emoji.pictures[i].concept].hexcode for i in emoji.indices("concepts")}
    for half in ("dev", "test"):
        tones = AnimatedTones(half)
        subjects = {subject for subject, _ in tones.asks}
        assert len(subjects) >= 5
        assert subjects & {name.lower().replace("-fe0f", "") for name in held}
        for subject, tone in tones.asks:
            change = tones.clip(subject).astype(float) - tones.clip(subject, tone)
            assert change.shape == (16, 96, 96, 3)
            assert np.sqrt(np.square(change / 255).mean()) > 0.03


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    file.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="must be a file of write_animated"):
        AnimatedTones("dev", file)
