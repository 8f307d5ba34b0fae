"""Two orders of the same work, and which one is taken."""

from __future__ import annotations

import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edits import INSTRUCTION, SCHEDULERS, SEED, edit
from video_models import MadeClip

from edgegen.media.clips import Frame
from edgegen.reuse import clockwork
from edgegen.video import VideoEditor
from edgegen.video.history import SchedulerStates
from edgegen.video.workspace import Workspace


def test_both_schedules_give_the_same_bits(any_scheduler: Any, tmp_path: Path) -> None:
    one, two = (
        edit(any_scheduler, MadeClip(6), tmp_path, 2, schedule=each, chunk=3)
        for each in ("frames", "steps")
    )
    assert np.array_equal(one, two)


def test_both_schedules_without_own_keys(pipe: Any, tmp_path: Path) -> None:
    one, two = (
        edit(pipe, MadeClip(8), tmp_path, 3, own=False, schedule=each, chunk=2)
        for each in ("frames", "steps")
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, edit(pipe, MadeClip(8), tmp_path, 3, chunk=2))


def test_both_schedules_with_img2img(sd_pipe: Any, tmp_path: Path) -> None:
    one, two = (
        edit(sd_pipe, MadeClip(8), tmp_path, 2, schedule=each, steps=5, chunk=3)
        for each in ("frames", "steps")
    )
    assert np.array_equal(one, two)


def test_scenes_share_nothing(pipe: Any, tmp_path: Path) -> None:
    """Two scenes in one clip give what each gives alone."""

    class Two(MadeClip):
        def __iter__(self) -> Any:
            for number, frame in enumerate(super().__iter__()):
                turned = 255 - frame.pixels if number >= 7 else frame.pixels
                yield Frame(turned, frame.time, frame.duration)

    class Second(Two):
        def __iter__(self) -> Any:
            return (frame for i, frame in enumerate(super().__iter__()) if i >= 7)

    for schedule in ("frames", "steps"):
        both = edit(pipe, Two(15), tmp_path, {"scenes": 2}, schedule=schedule)
        first = edit(pipe, MadeClip(7), tmp_path, 2, schedule=schedule)
        second = edit(pipe, Second(15), tmp_path, 2, schedule=schedule)
        assert np.array_equal(both, np.concatenate([first, second]))


def test_the_schedule_is_chosen_by_memory(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(schedule: str = "auto") -> str:
        editor = VideoEditor(pipe, 2, schedule=schedule)
        name = f"o{len(list(tmp_path.iterdir()))}"
        return editor.edit(MadeClip(4), tmp_path / name, INSTRUCTION, steps=2).schedule

    assert chosen() == "frames"
    monkeypatch.setattr("edgegen.video.editor._free_memory", lambda _: 1e4)
    assert chosen() == "steps"
    assert chosen("frames") == "frames"
    with clockwork(pipe):
        assert chosen() == "frames"  # else features of every frame would be kept
        assert chosen("steps") == "frames"
    pipe.scheduler = SCHEDULERS["dpm"]
    assert chosen() == "frames"  # goes on in mid-scene when resumed


def test_latents_of_earlier_steps_are_not_in_memory(tmp_path: Path) -> None:
    scheduler = SCHEDULERS["dpm"]
    scheduler.set_timesteps(4)
    states = SchedulerStates(scheduler, 0)
    assert states.history
    rows = Workspace(tmp_path / "a", {}, False).rows("history", (2, 3, 3), torch.float32)
    drawn = torch.Generator().manual_seed(SEED)
    with closing(rows), states.in_file(rows):
        kept: list[tuple[Any, torch.Tensor]] = []
        for batch in range(3):
            states.enter(batch, 0)
            sample = torch.randn(2, 2, 3, 3, generator=drawn)
            scheduler.step(sample, scheduler.timesteps[0], sample)
            kept.append((weakref.ref(scheduler.model_outputs[-1]), scheduler.model_outputs[-1] + 0))
            states.leave(batch)
        states.renew(0)
        assert [tensor() for tensor, _ in kept] == [None] * 3
        for batch, (_, value) in enumerate(kept):
            states.enter(batch, 1)
            assert torch.equal(scheduler.model_outputs[-1], value)
            assert scheduler.step_index == 1
    states.enter(0, 0)
    assert scheduler.step_index is None  # nothing is kept behind the file
