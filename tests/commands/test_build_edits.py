from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgegen.commands import build_edits
from edgegen.data import painting, photos
from edgegen.data.painting import PaintedCrops

sys.path.append(str(Path(__file__).parents[1] / "data"))
from painted import paint, stills


class Teacher:
    """Stands for the network, which is an optional package's."""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        return paint(picture)

    @staticmethod
    def weights_file() -> Path:
        return Path(__file__)


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photos, "packaged_photos", lambda: [])
    monkeypatch.setattr(build_edits, "packaged_photos", lambda: [])
    stills(tmp_path / "stills")
    return ["photo_folders=[stills]", "size=32", "crops=5", "held_out=4", "output=edits",
            "output_dir=run"]  # fmt: skip


def test_crops_are_built_shown_and_recorded(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_edits, "Painter", Teacher)
    build_edits.main(typed)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["edits/crops_train"] == 5
    assert metrics["edits/files_held_out"] == 2
    assert len(PaintedCrops("edits", "held_out")) == 4
    assert Path("run/paintings.png").is_file()
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "finished"
    assert any("coffee.png" in name for name in map(str, record["files"]))


def test_without_the_teacher_nothing_is_written(
    typed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(painting, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        build_edits.main(typed)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'edgegen[edits]'" in line
    assert not Path("edits").exists()
    assert not Path("run").exists()
