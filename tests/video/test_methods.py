"""Methods at work on the pipeline while a clip is edited."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from edits import INSTRUCTION, edit, plain
from video_models import BETAS, MadeClip

from edgegen.quantization import quantized, torchao_quantized
from edgegen.reuse import clockwork
from edgegen.sampling.steps import bound, bound_by
from edgegen.video import VideoEditor
from edgegen.video.depends import weights_checksum
from edgegen.video.editor import SCHEDULES


@pytest.mark.parametrize("predictor", ["identity", "linear"])
def test_feature_reuse_takes_the_frames_one_after_the_other(
    pipe: Any, tmp_path: Path, predictor: str
) -> None:
    """Else the features of all frames would be kept at once; the chunks change nothing."""
    run = partial(edit, pipe, MadeClip(8), tmp_path, 2, steps=5)
    full = run(chunk=3)
    with clockwork(pipe, clock=2, predictor=predictor) as reuse:
        one, two = (run(schedule="steps", chunk=each) for each in (3, 6))
        assert reuse.passes == [True, False, True, False, True]
        editor = VideoEditor(pipe, 2, schedule="steps")
        made = editor.edit(MadeClip(4), tmp_path / "forced.mkv", INSTRUCTION, steps=2)
        assert made.schedule == "frames"
    assert np.abs(one.astype(int) - two).max() <= 1
    assert not np.array_equal(one, full)
    with clockwork(pipe, clock=1):
        assert np.array_equal(run(chunk=3), full)


def test_methods_and_few_steps_together(pipe: Any, tmp_path: Path) -> None:
    """Quantized, with feature reuse, by the scheduler of a consistency model; nothing is left."""
    run = partial(edit, pipe, MadeClip(7), tmp_path, 2, steps=4, chunk=3, guidance=1.0)
    before = {name: each.clone() for name, each in pipe.unet.state_dict().items()}
    pipe.scheduler = LCMScheduler(**BETAS, original_inference_steps=20)
    full = run()
    met = {"activations": {"dynamic": True}, "time_embedding": "calls"}  # no calibration
    with quantized(pipe, "w8a8", **met):
        eight = [run(schedule=each) for each in ("frames", "steps")]
    with quantized(pipe, "w4a8", **met), clockwork(pipe, clock=2) as reuse:
        both = run()
        assert reuse.passes == [True, False, True, False]
    with quantized(pipe, "w4a8", **met):
        four = run()
    assert np.array_equal(*eight)
    off = [np.abs(each.astype(float) - full).mean() for each in (eight[0], four, both)]
    assert 0 < off[0] < off[1]
    assert not np.array_equal(four, both)
    assert np.array_equal(run(), full)
    assert all(torch.equal(each, before[name]) for name, each in pipe.unet.state_dict().items())


def test_reuse_with_one_anchor_alone_is_that_of_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    with clockwork(pipe, clock=2):
        assert np.array_equal(edit(pipe, MadeClip(1), tmp_path, 1), plain(pipe, [0]))


def test_methods_that_only_go_with_the_pipeline_are_refused(pipe: Any, tmp_path: Path) -> None:
    editor = VideoEditor(pipe, 2)
    with bound(pipe.unet, "mine: counts by itself"), bound(pipe.unet, "mine: counts by itself"):
        for output in ("a.mkv", "a"):
            with pytest.raises(ValueError, match=r"^mine: counts by itself: it cannot be used for"):
                editor.edit(MadeClip(4), tmp_path / output, INSTRUCTION, steps=1)
    assert not [*tmp_path.glob("a*"), *tmp_path.glob(".*")]
    assert bound_by(pipe.unet) is None
    editor.edit(MadeClip(4), tmp_path / "a", INSTRUCTION, steps=1)
    with bound(pipe.unet, "a graph", layers=True):  # harms what reaches into layers alone
        with pytest.raises(ValueError, match="a graph"):
            editor.check()
        VideoEditor(pipe, "none").check()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_anchors_that_would_do_nothing_are_an_error(
    schedule: str, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something stands in for the whole UNet, such as a graph, and attention never runs."""
    monkeypatch.setattr(pipe.unet, "forward", lambda sample, *_, **__: (sample[:, :4],))
    with pytest.raises(ValueError, match="left no keys and values in the first step"):
        edit(pipe, MadeClip(4), tmp_path, 2, schedule=schedule)
    assert not list(tmp_path.glob(".*"))  # nothing is left where nothing was made
    edit(pipe, MadeClip(4), tmp_path, "none", schedule=schedule)


def test_weights_of_several_tensors_are_told_apart(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    sums = [weights_checksum(pipe)]
    for config in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"):
        with torchao_quantized(pipe, config):
            sums.append(weights_checksum(pipe))
            with torch.inference_mode():
                assert weights_checksum(pipe) == sums[-1]
                edit(pipe, MadeClip(4), tmp_path, 2, steps=1)
    assert len(set(sums)) == 3  # two of the same integers, which are used in different ways
    assert weights_checksum(pipe) == sums[0]
