from __future__ import annotations

from pathlib import Path

import pytest

from edgegen import assets

# SHA-256 of "abc", from FIPS 180-4's example.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights.safetensors").write_text("abc")
    (tmp_path / "README.md").write_text("for people")
    (tmp_path / ".DS_Store").write_text("hidden")
    assets.write_sums(tmp_path)
    return tmp_path


def test_sums_have_the_format_of_sha256sum(folder: Path) -> None:
    assert (folder / assets.SUMS).read_text() == f"{ABC}  part/weights.safetensors\n"
    assert assets.verify(folder) == {"part/weights.safetensors": ABC}


def test_changed_missing_and_stray_files(folder: Path) -> None:
    weights = folder / "part" / "weights.safetensors"
    (folder / "README.md").write_text("edited")
    assets.verify(folder)
    weights.write_text("abd")
    with pytest.raises(ValueError, match=r"weights\.safetensors: sha256 is .*, expected ba7816"):
        assets.verify(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors: missing, but listed"):
        assets.verify(folder)
    weights.write_text("abc")
    (folder / "more.bin").write_text("x")
    with pytest.raises(ValueError, match=r"more\.bin: not listed"):
        assets.verify(folder)


def test_broken_and_missing_lists(folder: Path) -> None:
    (folder / assets.SUMS).write_text("nonsense\n")
    with pytest.raises(ValueError, match="malformed line 'nonsense'"):
        assets.verify(folder)
    (folder / assets.SUMS).unlink()
    with pytest.raises(FileNotFoundError, match="no SHA256SUMS"):
        assets.verify(folder)


@pytest.mark.parametrize("name", assets.model_names())
def test_every_embedded_model_is_whole(name: str) -> None:
    assert assets.model_folder(name).name == name
