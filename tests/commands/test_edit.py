"""The command: an edited file, its record, resuming, and one line for what is wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import edgegen
from edgegen.commands import edit
from edgegen.media.clip_writing import write_clip
from edgegen.media.clips import Timing, open_clip
from edgegen.pipelines.layout import channels_last
from edgegen.runs.record import is_finished, read_record
from edgegen.video import VideoEditor
from processes import start


def make_video(path: Path, count: int = 9) -> Path:
    y, x = np.mgrid[0:16, 0:16]
    frames = [np.stack([9 * x, 9 * y, 25 * i + 0 * x], -1).astype(np.uint8) for i in range(count)]
    timing = Timing(Fraction(1, 1000), [40 * i + i % 2 for i in range(count)], [40] * count)
    write_clip(path, frames, timing, codec="ffv1" if path.suffix == ".mkv" else None)
    return path


@pytest.fixture
def run(
    editor_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the command on a clip of nine frames, in 2 steps; returns the output's path."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "in.mkv")

    def command(*overrides: str, output: str = "out.mkv") -> Path:
        fixed = ["video=in.mkv", "instruction=make it red", f"output={output}", "output_dir=o"]
        edit.main([*fixed, f"model={editor_folder}", "steps=2", "codec=ffv1", *overrides])
        return Path(output)

    return command


def pixels(path: Path) -> np.ndarray:
    return np.stack([frame.pixels for frame in open_clip(path)])


def test_the_command_does_what_the_editor_does(
    run: Callable[..., Path], editor_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    found = run("seed=3", "guidance=4", "anchors=[1,5]", "own=false", "chunk=3")
    assert "frames" in capsys.readouterr().out
    pipe = edgegen.load(editor_folder)
    pipe.set_progress_bar_config(disable=True)
    for net in (pipe.unet, pipe.vae):
        channels_last(net)  # as commands have it, to the last bit
    VideoEditor(pipe, [1, 5], own=False, chunk=3).edit(
        "in.mkv", tmp_path / "other.mkv", "make it red", steps=2, seed=3, guidance=4.0, codec="ffv1"
    )
    assert found.read_bytes() == (tmp_path / "other.mkv").read_bytes()
    times = [[f.time for f in open_clip(path)] for path in ("in.mkv", found)]
    assert times[0] == times[1]
    metrics = json.loads(Path("o/metrics.json").read_text())
    assert metrics["run/frames"] == 9
    assert metrics["run/guidance_branches"] == 3
    assert metrics["cost/tflops_all"] > metrics["cost/tflops_conv_linear"] > 0
    assert metrics["cost/seconds_per_frame"] > 0
    record = read_record("o")
    assert is_finished("o")
    assert record["output"]["anchors"] == [[1, 5]]
    assert {"in.mkv"} < set(record["files"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.mkv",
        "o",
        "other.mkv",
        "out.mkv",
    ]


def test_free_text_is_taken_as_it_is(run: Callable[..., Path], tmp_path: Path) -> None:
    text = "make it [red], 'blue' = {x} ${y}"
    run(f"instruction={text}", "preview=1", "anchors=1", output="a, b=[c].mkv")
    assert (tmp_path / "a, b=[c].mkv").is_file()
    assert yaml.safe_load(Path("o/config.yaml").read_text())["instruction"] == text


def test_preview_scenes_and_other_containers(run: Callable[..., Path], tmp_path: Path) -> None:
    made = run("preview=4", "anchors={scenes: 2}", "codec=null", output="out.gif")
    assert pixels(made).shape == (4, 16, 16, 3)
    made = run("preview=2", "anchors=first", "codec=null", output="frames")
    assert sorted(path.name for path in made.iterdir()) == ["000000.png", "000001.png"]
    made = run("video=frames", "rate=10", "anchors=middle", "resolution=8", output="b.mkv")
    assert pixels(made).shape == (2, 8, 8, 3)
    assert [float(f.time * open_clip(made).time_base) for f in open_clip(made)] == [0, 0.1]


def test_a_text_to_image_model_edits_by_img2img(
    run: Callable[..., Path], tiny_pipeline_folder: Path
) -> None:
    weak = pixels(run(f"model={tiny_pipeline_folder}", "strength=0.5"))
    strong = pixels(run(f"model={tiny_pipeline_folder}", "strength=1"))
    assert weak.shape == strong.shape == (9, 16, 16, 3)
    assert not np.array_equal(weak, strong)
    assert json.loads(Path("o/metrics.json").read_text())["run/guidance_branches"] == 2


def test_methods_are_at_work_and_counted(run: Callable[..., Path]) -> None:
    full = pixels(run("steps=4", "anchors=2"))
    whole = json.loads(Path("o/metrics.json").read_text())["cost/tflops_all"]
    reused = pixels(run("steps=4", "anchors=2", "method=[clockwork]", "method.clockwork.clock=2"))
    assert not np.array_equal(full, reused)
    assert json.loads(Path("o/metrics.json").read_text())["cost/tflops_all"] < 0.9 * whole


def test_killed_and_resumed(run: Callable[..., Path], editor_folder: Path, tmp_path: Path) -> None:
    make_video(tmp_path / "in.mkv", 60)
    settings = ["chunk=2", "steps=4", "schedule=steps"]
    whole = run(*settings).read_bytes()
    (tmp_path / "out.mkv").unlink()
    typed = ["video=in.mkv", "instruction=make it red", "output=out.mkv", f"model={editor_folder}"]
    process = start("edit", *typed, "codec=ffv1", "output_dir=o", *settings)
    progress = tmp_path / ".out.mkv.edit" / "progress.json"
    end = time.monotonic() + 200
    while process.is_alive() and time.monotonic() < end:
        try:
            if json.loads(progress.read_text())["evaluation"] >= 2:
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    assert process.is_alive(), "ended before it could be killed"
    process.kill()
    process.join()
    assert not (tmp_path / "out.mkv").exists()
    assert read_record("o")["status"] == "running"
    assert run(*settings, "resume=true").read_bytes() == whole
    assert json.loads(Path("o/metrics.json").read_text())["run/frames_new"] < 40
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def refused(run: Callable[..., Path], capsys: Any, tmp_path: Path) -> Callable[..., str]:
    """Runs the command, which must stop with one line and write nothing; returns the line."""

    def command(*overrides: str, **settings: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            run(*overrides, **settings)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return command


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("video=none.mp4", "none.mp4: no such file"),
        ("video=null", "video is required"),
        ("video=text.mp4", "text.mp4: damaged, or no video"),
        ("video=cut.mkv", "cut.mkv: cut short"),
        ("video=empty", "empty: holds no picture"),
        ("instruction=", "instruction: is empty"),
        ("instruction=null", "instruction is required"),
        ("output=in.mkv", "in.mkv: is the source itself"),
        ("output=", "output: is empty"),
        ("output=a.xyz", "no container with the ending .xyz"),
        ("codec=nonsense", "nonsense is no encoder"),
        ("anchors=10", "anchors=10: the clip has only 9 frames"),
        ("anchors=[9]", "the clip has the frames 0 to 8"),
        ("anchors=last", "anchors=last: allowed are"),
        ("schedule=both", "schedule=both: allowed are auto, frames, steps"),
        ("preview=0", "preview=0: must be a whole number, 1 or more"),
        ("steps=0", "steps=0: must be a whole number, 1 or more"),
        ("strength=2", "strength=2: must be above 0"),
        ("guidance=many", "guidance=many: must be a number"),
        ("own=maybe", "own=maybe: must be true or false"),
        ("rate=12", "rate=12: only for a folder"),
        ("model=sd15", "model=sd15: says no weights"),
        ("resum=true", "unknown option 'resum'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    refused: Callable[..., str], tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.mkv").write_bytes((tmp_path / "in.mkv").read_bytes()[:2000])
    assert message in refused(override)


def test_a_full_disk_is_told_in_one_line(
    run: Callable[..., Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgegen.video.editor.write_clip", full)
    with pytest.raises(SystemExit) as stopped:
        run()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "output=out.mkv: the disk is full" in error.splitlines()[-1]
    assert not Path("out.mkv").exists()
    assert read_record("o")["status"] == "failed"
    monkeypatch.undo()
