"""Each measure on frames whose cosines are known, by hand."""

import math

import pytest
import torch
from torch import Tensor

from edgegen.metrics.video.embeddings import (
    frame_accuracy,
    frame_consistency,
    subject_consistency,
    tem_con,
)


def at(*degrees: float) -> Tensor:
    """Embeddings at angles in a plane; of different lengths, which must not matter."""
    turned = torch.tensor(degrees).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1)[:, None]
    return torch.stack([turned.cos(), turned.sin()], 1) * lengths


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_all_pairs_and_neighbours_are_two_measures() -> None:
    frames = at(0, 30, 60, 90)
    # Three pairs at 30°, two at 60°, one at 90°.
    assert frame_consistency(frames) == pytest.approx((3 * cos(30) + 2 * cos(60)) / 6)
    assert tem_con(frames) == pytest.approx(cos(30))
    back_and_forth = at(0, 60, 0, 60)
    assert tem_con(back_and_forth) == pytest.approx(0.5)
    assert frame_consistency(back_and_forth) == pytest.approx((2 * 1 + 4 * 0.5) / 6)


def test_order_matters_to_neighbours_alone() -> None:
    frames, shuffled = at(0, 10, 40, 90), at(40, 0, 90, 10)
    assert frame_consistency(frames) == pytest.approx(frame_consistency(shuffled))
    assert tem_con(frames) > tem_con(shuffled)


def test_subject_consistency_looks_at_the_first_and_the_one_before() -> None:
    frames = at(0, 60, 150)
    second = 0.5
    third = (0 + 0) / 2  # 90° from the one before, 150° from the first: cut off at 0
    assert subject_consistency(frames) == pytest.approx((second + third) / 2)
    frames = at(0, 45, 45)
    assert subject_consistency(frames) == pytest.approx((cos(45) + (1 + cos(45)) / 2) / 2)


def test_frame_accuracy_counts_frames_nearer_to_the_target() -> None:
    source, target = at(0)[0], at(90)[0]
    assert frame_accuracy(at(10, 50, 80, 100), source, target) == 0.75
    # As near to one as to the other is not nearer.
    tie = torch.tensor([[1.0, 1.0]])
    assert frame_accuracy(tie, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])) == 0


def test_a_frozen_clip_is_perfectly_consistent() -> None:
    frozen = at(20)[0].expand(5, -1)
    for score in (frame_consistency, tem_con, subject_consistency):
        assert score(frozen) == pytest.approx(1)


@pytest.mark.parametrize("score", [frame_consistency, tem_con, subject_consistency])
def test_one_frame_holds_no_time(score) -> None:
    with pytest.raises(ValueError, match="2 embeddings or more"):
        score(at(0))
