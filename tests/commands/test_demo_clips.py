"""The demo's clip: vendored with its licence, edited, shown beside its source."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from edgegen import assets
from edgegen.commands import _demo_clips, demo
from edgegen.media.clips import open_clip
from edgegen.media.side_by_side import side_by_side

CLIP = assets.ROOT / "clips" / "big_buck_bunny.mp4"


def test_the_clip_ships_with_its_attribution() -> None:
    assert list(assets.verify(CLIP.parent)) == [CLIP.name]
    assert CLIP.stat().st_size < 1_000_000
    words = (CLIP.parent / "ATTRIBUTION.md").read_text()
    for each in ("Blender Foundation", "licenses/by/3.0", "Changes:"):
        assert each in words
    frames = list(open_clip(CLIP))
    assert (len(frames), frames[0].pixels.shape) == (132, (144, 256, 3))
    seconds = (frames[-1].time + frames[-1].duration) * open_clip(CLIP).time_base
    assert float(seconds) == pytest.approx(5.28)


def test_clips_side_by_side_are_as_long_as_the_shortest(tmp_path: Path) -> None:
    for name, count, side, grey in (("a", 3, 8, 10), ("b", 2, 16, 200)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (side, side), (grey,) * 3).save(tmp_path / name / f"{number}.png")
    frames = list(side_by_side([open_clip(tmp_path / each) for each in "ab"], gap=4))
    assert len(frames) == 2
    for frame in frames:
        assert frame.shape == (16, 36, 3)
        assert (frame[:, :16] == 10).all()
        assert (frame[:, 16:20] == 255).all()
        assert (frame[:, 20:] == 200).all()


def test_the_report_shows_source_and_edit(
    tiny_pipeline_folder: Path,
    editor_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["steps=1", 'prompts=["a fox"]', "clip_frames=4", "clip_steps=1", "output_dir=out"]
    editors = f"editors=[{editor_folder},{editor_folder}]"
    typed = [f"model={tiny_pipeline_folder}", editors, *few]
    demo.main(typed)
    report = Path("out/report.html").read_text()
    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', report)
    assert len(videos) == 2
    for words in ("turn it into a painting", "make it night", "a frame", "Blender Foundation"):
        assert words in report
    with av.open(io.BytesIO(base64.b64decode(videos[0]))) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    source = next(iter(open_clip(CLIP))).pixels
    assert len(shown) == 4
    assert shown[0].shape == (144, 3 * 256 + 2 * 4, 3)
    assert np.abs(shown[0][:, :256].astype(float) - source).mean() < 6
    assert np.abs(shown[0][:, 260:516].astype(float) - source).mean() > 12
    assert np.abs(shown[0][:, 520:].astype(float) - shown[0][:, 260:516]).mean() < 6
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["cost/clip0_editor1_tflops_per_frame_all"] > 0

    def fail(*_: Any) -> None:
        raise AssertionError("finished clips are not made again")

    monkeypatch.setattr(_demo_clips, "_make", fail)
    demo.main(typed)
    again = json.loads(Path("out/metrics.json").read_text())
    assert (
        again["cost/clip1_editor0_seconds_per_frame"]
        == metrics["cost/clip1_editor0_seconds_per_frame"]
    )
    with pytest.raises(AssertionError, match="not made again"):
        demo.main([*typed, "clip_steps=2"])


def test_without_the_editor_there_are_pictures_alone(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_demo_clips.assets, "model_names", lambda: ["emoji"])
    few = ["steps=1", 'prompts=["a fox"]', f"model={tiny_pipeline_folder}", "output_dir=out"]
    demo.main(few)
    assert "<video" not in Path("out/report.html").read_text()
    with pytest.raises(SystemExit):
        demo.main([*few, "clip_frames=0"])
    assert "clip_frames=0: must be a whole number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main([*few, "editors=emoji-edit"])
    assert "editors=emoji-edit: must be a list" in capsys.readouterr().err
