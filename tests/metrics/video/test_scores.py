"""The metric over clips against the functions that it is made of."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgegen.metrics.quality.clip import Clip
from edgegen.metrics.quality.text import directional_similarity
from edgegen.metrics.video.embeddings import (
    frame_accuracy,
    frame_consistency,
    subject_consistency,
    tem_con,
)
from edgegen.metrics.video.pixels import flicker, warp_error
from edgegen.metrics.video.scores import VideoScores


class Thumbnail(nn.Module):
    """A 3 × 3 picture as features."""

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pictures, 3).flatten(1)


def still(first: Tensor, second: Tensor) -> Tensor:
    return torch.zeros(2, *first.shape[-2:])


def clip_of(seed: int, frames: int = 4) -> Tensor:
    return torch.rand(frames, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


def test_scores_are_means_over_clips(clip_folder: Path) -> None:
    judge = Clip(clip_folder, name="judge")
    metric = VideoScores(judge, subject=Thumbnail(), flow=still, resamples=20)
    captions = "a fox", "a painting of a fox"
    clips = [(clip_of(1), clip_of(2), captions), (clip_of(3, 3), None, None)]
    for edited, source, texts in clips:
        metric.update(edited, source, texts)
    found = metric.compute()
    first, second = clips[0][0], clips[1][0]
    frames = [judge.pictures(edited) for edited in (first, second)]
    texts = judge.captions(captions)
    before = judge.pictures(clips[0][1])
    known = {
        "frame_consistency_judge": [frame_consistency(f) for f in frames],
        "tem_con_judge": [tem_con(f) for f in frames],
        "frame_acc_judge": [frame_accuracy(frames[0], texts[0], texts[1])],
        "directional_judge": [
            directional_similarity(before, frames[0], texts[:1], texts[1:]).mean().item()
        ],
        "subject_consistency_thumbnail": [
            subject_consistency(Thumbnail()(edited)) for edited in (first, second)
        ],
        "flicker": [flicker(edited) for edited in (first, second)],
        "warp_error": [warp_error(clips[0][1], first, still)],
    }
    for name, values in known.items():
        mean = sum(values) / len(values)
        assert found[f"video/{name}"].item() == pytest.approx(mean, abs=1e-5)
        assert found[f"video/{name}_n"] == len(values)
    assert len(found) == 5 * len(known)


def test_names_without_judge_and_flow() -> None:
    metric = VideoScores(subject=Thumbnail(), resamples=20)
    metric.update(clip_of(1), index=3)
    assert metric.names == ("video/subject_consistency_thumbnail", "video/flicker")
    assert metric.samples()[1].tolist() == [3]


def test_the_copied_source_wins_on_consistency_alone(clip_folder: Path) -> None:
    metric = VideoScores(clip_folder, subject=Thumbnail(), flow=still, resamples=20)
    source = clip_of(1)[:1].expand(4, -1, -1, -1)
    metric.update(source, source, ("a fox", "a dog"))
    found = metric.compute()
    name = metric.clip.name
    for score in ("flicker", f"tem_con_{name}", f"frame_consistency_{name}"):
        assert found[f"video/{score}"].item() == pytest.approx(1)
    assert found["video/warp_error"] == 0
    assert found[f"video/directional_{name}"].item() == pytest.approx(0, abs=1e-4)
