"""Killed and resumed; long clips; what is left beside the output."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
import weakref
from collections.abc import Iterator
from functools import partial, partialmethod
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from video_models import MadeClip, make_pipe, picture

from edgegen.media.clips import Frame
from edgegen.video import VideoEditor
from edgegen.video.workspace import Rows, Workspace
from processes import call


def kill_and_resume(folder: Path, schedule: str, history: bool) -> None:
    """Kill a child (-9) again and again, a little later each time, until one comes to its end."""
    pipe = make_pipe(folder)
    if history:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def child(name: str, resume: bool) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                editor = VideoEditor(pipe, 2, schedule=schedule, chunk=2)
                editor.edit(MadeClip(9), folder / name, "make it red", steps=3, resume=resume)
                status = 0
            finally:
                os._exit(status)
        return pid

    start = time.perf_counter()
    assert os.waitpid(child("whole.mkv", False), 0)[1] == 0
    whole = time.perf_counter() - start
    kills, delay = 0, 0.15 * whole
    while True:
        pid = child("stopped.mkv", True)
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.002)
        else:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            break
        kills += 1
        delay += 0.12 * whole
    (folder / "kills").write_text(str(kills))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "history"), [("frames", False), ("steps", False), ("steps", True)]
)
def test_killed_at_any_moment_and_resumed_gives_the_same_file(
    tmp_path: Path, schedule: str, history: bool
) -> None:
    call(kill_and_resume, tmp_path, schedule, history, log=tmp_path / "log")
    assert int((tmp_path / "kills").read_text()) >= 2
    whole, stopped = tmp_path / "whole.mkv", tmp_path / "stopped.mkv"
    assert whole.read_bytes() == stopped.read_bytes()
    assert not list(tmp_path.glob(".*"))  # nothing else is left


class Stop(Exception):
    pass


def stop_after(frames: float) -> Any:
    done = 0.0

    def tell(more: float, total: int) -> None:
        nonlocal done
        done += more
        if done >= frames:
            raise Stop

    return tell


@pytest.mark.parametrize("schedule", ["frames", "steps"])
def test_what_is_done_is_not_done_again(pipe: Any, tmp_path: Path, schedule: str) -> None:
    editor = VideoEditor(pipe, 2, schedule=schedule, chunk=2)
    calls = []
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]

    def edit(**settings: Any) -> int:
        calls.clear()
        editor.edit(MadeClip(10), tmp_path / "a.mkv", "make it red", steps=4, **settings)
        return len(calls)

    everything = edit()
    assert everything == (1 + 4) * 4  # anchors and four chunks
    with pytest.raises(Stop):
        edit(progress=stop_after(8))
    assert (tmp_path / ".a.mkv.edit").is_dir()
    again = edit(resume=True)
    assert again <= 0.6 * everything
    with pytest.raises(Stop):
        edit(progress=stop_after(8))
    assert edit() == everything  # not asked to resume
    assert edit(resume=True) == everything  # nothing to resume


@pytest.mark.parametrize("history", [False, True])
def test_denoised_frames_are_not_denoised_again(
    history: bool, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first picture was decoded, steps outside."""
    if history:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    editor = VideoEditor(pipe, 2, schedule="steps", chunk=2)

    def edit(name: str, **settings: Any) -> bytes:
        editor.edit(MadeClip(6), tmp_path / name, "make it red", steps=3, **settings)
        return (tmp_path / name).read_bytes()

    whole = edit("a.mkv")

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "keep", stop)
        with pytest.raises(Stop):
            edit("b.mkv")
    monkeypatch.setattr(pipe.unet, "forward", stop)
    assert edit("b.mkv", resume=True) == whole


def test_resuming_another_edit_is_refused(pipe: Any, tmp_path: Path) -> None:
    editor = VideoEditor(pipe, 2, chunk=2)

    def edit(instruction: str = "a", **settings: Any) -> None:
        editor.edit(MadeClip(6), tmp_path / "a.mkv", instruction, steps=2, **settings)

    with pytest.raises(Stop):
        edit(progress=stop_after(4))
    with pytest.raises(ValueError, match=r"other settings \(instruction, seed\); give the same"):
        edit("b", seed=2, resume=True)
    with pytest.raises(ValueError, match=r"other settings \(settings\)"):
        edit(settings={"method": "w8a8"}, resume=True)
    weight = pipe.unet.conv_in.weight.data
    before = weight.clone()
    weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        edit(resume=True)
    weight.copy_(before)
    edit(resume=True)


def test_a_complete_folder_whose_work_was_not_cleared_up(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the folder took its name and before the work beside it was removed."""
    editor, calls = VideoEditor(pipe, 2, chunk=2), []

    def edit(**settings: Any) -> None:
        editor.edit(MadeClip(6), tmp_path / "a", "make it red", steps=1, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "remove", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            edit()
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert len(before) == 6
    with pytest.raises(ValueError, match="a folder with something in it"):
        edit()  # not asked to resume: somebody's folder
    forward = pipe.unet.forward
    counted = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(pipe.unet, "forward", counted)
    edit(resume=True)
    assert not calls
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    assert not (tmp_path / ".a.edit").exists()
    (tmp_path / "a" / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="a folder with something in it"):
        edit(resume=True)


def test_a_complete_file_whose_work_was_being_cleared_up(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any removal: the file is there, and nothing is made again."""
    editor, output = VideoEditor(pipe, 2, chunk=2), tmp_path / "a.mkv"
    forward, calls = pipe.unet.forward, []
    monkeypatch.setattr(
        pipe.unet, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    )

    def edit(instruction: str = "make it red", **settings: Any) -> int:
        calls.clear()
        editor.edit(MadeClip(4), output, instruction, steps=1, **settings)
        return len(calls)

    def left_after(removals: int) -> bool:
        """Edit, stopped at that removal beside the output; whether it was stopped."""
        done = 0

        def stop(path: Any, remove: Any = os.unlink) -> None:
            nonlocal done
            if ".edit" in str(path):
                done += 1
                if done > removals:
                    raise Stop
            remove(path)

        with monkeypatch.context() as patch:
            patch.setattr("edgegen.video.workspace.shutil.rmtree", partial(stop, remove=rmtree))
            patch.setattr(
                Path, "unlink", lambda self, missing_ok=False: self.exists() and stop(self)
            )
            patch.setattr(Path, "rmdir", partialmethod(stop, remove=os.rmdir))
            try:
                edit(resume=True)
            except Stop:
                return True
        return False

    whole = None
    for removals in range(20):
        if not left_after(removals):
            break
        whole = whole or output.read_bytes()
        begun = Workspace.begun(output)
        assert (Workspace.written(output) is not None) == begun
        if begun:
            assert Workspace.schedule(output) == "frames"
            with pytest.raises(ValueError, match="begun with other settings"):
                edit("make it blue", resume=True)
            assert edit(resume=True) == 0
        assert output.read_bytes() == whole
    assert 3 < removals < 20
    assert not list(tmp_path.glob(".*"))

    # What is there is another file than was asked for.
    assert left_after(1)
    assert Workspace.written(output) is not None
    assert edit(resume=True, codec="ffv1") > 0
    assert output.read_bytes() != whole


def test_killed_while_older_work_was_cleared_up(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not asked to resume, it removes what is there; what is left then is not gone on with."""
    editor, output = VideoEditor(pipe, 2, schedule="steps", chunk=2), tmp_path / "a.mkv"

    def edit(**settings: Any) -> None:
        editor.edit(MadeClip(6), output, "make it red", steps=3, **settings)

    edit()
    whole = output.read_bytes()
    with pytest.raises(Stop):
        edit(progress=stop_after(5))
    assert list((tmp_path / ".a.mkv.edit").glob("*.latents"))

    def some(folder: Path) -> None:
        for path in folder.glob("*.latents"):
            path.unlink()
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("edgegen.video.workspace.shutil.rmtree", some)
        with pytest.raises(Stop):
            edit()
    edit(resume=True)
    assert output.read_bytes() == whole


def test_the_schedule_is_that_of_the_work_begun(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, output = VideoEditor(pipe, 2, chunk=2), tmp_path / "a.mkv"

    def edit(**settings: Any) -> str:
        clip = MadeClip(6)
        return editor.edit(clip, output, "make it red", steps=2, **settings).schedule

    for memory, schedule in ((1e12, "frames"), (1e3, "steps")):
        monkeypatch.setattr("edgegen.video.editor._free_memory", lambda _, now=memory: now)
        with pytest.raises(Stop):
            edit(progress=stop_after(3))
        monkeypatch.setattr("edgegen.video.editor._free_memory", lambda _, now=memory: 1e15 / now)
        assert edit(resume=True) == schedule
        assert edit(resume=True) != schedule  # nothing is left to go on with


def test_a_full_disk_leaves_no_output(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mkv").write_bytes(b"of before")
    keep = Workspace.keep

    def full(self: Workspace, number: int, pixels: np.ndarray) -> None:
        if number == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(self, number, pixels)

    def edit(**settings: Any) -> None:
        VideoEditor(pipe, 2, chunk=2).edit(
            MadeClip(6), tmp_path / "a.mkv", "make it red", steps=1, **settings
        )

    monkeypatch.setattr(Workspace, "keep", full)
    with pytest.raises(OSError, match="No space left"):
        edit()
    assert (tmp_path / "a.mkv").read_bytes() == b"of before"
    monkeypatch.undo()
    edit(resume=True)
    assert (tmp_path / "a.mkv").stat().st_size > 100


class Counted(np.ndarray):
    """An array that knows how many of its kind are alive."""

    alive = most = 0

    def __array_finalize__(self, other: Any) -> None:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        weakref.finalize(self, Counted._gone)

    @staticmethod
    def _gone() -> None:
        Counted.alive -= 1


class Long(MadeClip):
    def __iter__(self) -> Iterator[Frame]:
        for number in range(self.count):
            pixels = picture(number, *self.size).view(Counted)
            yield Frame(pixels, number, 1)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["frames", "steps"])
def test_frames_are_never_all_in_memory(
    pipe: Any, tmp_path: Path, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 frames; those read, and the tensors made of them, are a few at any time."""
    Counted.alive = Counted.most = 0
    most = 0
    kept: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    advance = pipe.unet.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal most
        kept.add(sample)
        most = max(most, len(kept))
        return advance(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    editor = VideoEditor(pipe, 3, schedule=schedule, chunk=20)
    made = editor.edit(Long(200), tmp_path / "a.mkv", "make it red", steps=2)
    assert made.frames == 200
    assert 0 < Counted.most <= 8
    assert most <= 2
    assert sum(len(batch) for batch in kept) == 0


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rows = Rows(tmp_path / f"{dtype}.latents", (4, 3, 5), dtype)
        values = torch.randn(7, 4, 3, 5).to(dtype)
        order = [6, 0, 3, 1, 2, 5, 4]
        rows.write(order[:4], values[:4])
        rows.write(order[4:], values[4:])
        assert torch.equal(rows.read(order), values)
        assert torch.equal(rows.read([3, 3]), values[[2, 2]])
        rows.close()
        assert (tmp_path / f"{dtype}.latents").stat().st_size == 7 * 60 * dtype.itemsize


def test_a_workspace_keeps_frames_to_the_bit(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "a.mp4", {"a": (1, 2)}, resume=False)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(3)]
    for number in (2, 0, 1):
        assert not space.has([number])
        space.keep(number, pictures[number])
    assert space.has([0, 1, 2])
    again = Workspace(tmp_path / "a.mp4", {"a": [1, 2]}, resume=True)
    found = [hashlib.md5(each.tobytes()).hexdigest() for each in again.frames(3)]
    assert found == [hashlib.md5(each.tobytes()).hexdigest() for each in pictures]
    again.note(scene=1, evaluation=2)
    assert again.progress() == {"scene": 1, "evaluation": 2}
    Workspace(tmp_path / "a.mp4", {"a": [1, 2]}, resume=False)
    assert not again.has([0])
    again.remove()
    assert list(tmp_path.iterdir()) == []
