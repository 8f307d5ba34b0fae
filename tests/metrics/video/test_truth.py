"""Errors and regret on clips of one colour a frame, worked out by hand."""

import pytest
import torch
from torch import Tensor

from edgegen.metrics.video.truth import clip_error, clip_regret, gap_closed, target_errors


def clip(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 5)


LIGHT, DARK = clip(0.8, 0.8, 0.8, 0.8), clip(0.2, 0.2, 0.2, 0.2)
TARGETS = torch.stack([LIGHT, DARK])


def test_errors_are_root_mean_squares_of_each_frame() -> None:
    edited = clip(0.8, 0.7, 0.2, 0.5)
    expected = [[0, 0.1, 0.6, 0.3], [0.6, 0.5, 0, 0.3]]
    errors = target_errors(edited, TARGETS)
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64))
    half = clip(0.5).clone()
    half[:, :, :2] += 0.2  # half of the pixels are off by 0.2
    found = target_errors(half, clip(0.5)[None])
    assert found.item() == pytest.approx((0.2**2 / 2) ** 0.5)


def test_regret_is_what_changing_its_mind_costs() -> None:
    wavering = target_errors(clip(0.8, 0.2, 0.8, 0.2), TARGETS)
    assert clip_error(wavering) == pytest.approx(0.3)
    assert clip_regret(wavering) == pytest.approx(0.3)
    steady = target_errors(clip(0.2, 0.2, 0.2, 0.2), TARGETS)
    assert clip_error(steady) == clip_regret(steady) == 0
    # Off by 0.1 everywhere, but always on the same side.
    off = target_errors(clip(0.7, 0.7, 0.7, 0.7), TARGETS)
    assert clip_error(off) == pytest.approx(0.1)
    assert clip_regret(off) == pytest.approx(0, abs=1e-7)
    # One frame of four goes over: (3 · 0 + 0.6) / 4 − 0.
    assert clip_regret(target_errors(clip(0.8, 0.8, 0.2, 0.8), TARGETS)) == pytest.approx(0.15)


def test_one_target_leaves_no_choice() -> None:
    errors = target_errors(clip(0.1, 0.9, 0.4, 0.2), TARGETS[:1])
    assert clip_regret(errors) == 0
    assert clip_error(errors) == pytest.approx((0.7 + 0.1 + 0.4 + 0.6) / 4)


def test_the_gap_between_source_and_target() -> None:
    source = clip(0.4, 0.4, 0.4, 0.4)
    before = target_errors(source, TARGETS)
    assert gap_closed(before, before) == 0
    assert gap_closed(target_errors(LIGHT, TARGETS), before) == 1
    # Three quarters of the way from 0.4 to 0.8; one beyond the source, away from both.
    assert gap_closed(target_errors(source + 0.3, TARGETS), before) == pytest.approx(0.75)
    alone = target_errors(source - 0.1, TARGETS[:1]), before[:1]
    assert gap_closed(*alone) == pytest.approx(-0.25)
    with pytest.raises(ValueError, match="no gap"):
        gap_closed(target_errors(LIGHT, TARGETS), target_errors(LIGHT, TARGETS))


def test_shapes_must_match() -> None:
    for targets in (LIGHT, TARGETS[:, :3], TARGETS[:0]):
        with pytest.raises(ValueError, match="needs a clip"):
            target_errors(LIGHT, targets)
