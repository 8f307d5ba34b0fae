from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgegen.video.anchors import (
    EachScene,
    Listed,
    Scene,
    Uniform,
    change,
    find_cuts,
    parse_anchors,
    signature,
)


@pytest.mark.parametrize(
    ("frames", "count", "wanted"),
    [
        (12, 3, (2, 6, 10)),
        (12, 1, (6,)),
        (5, 5, (0, 1, 2, 3, 4)),
        (1, 1, (0,)),
        (100, 2, (25, 75)),
    ],
)
def test_uniform_anchors_are_the_middles_of_equal_parts(
    frames: int, count: int, wanted: tuple[int, ...]
) -> None:
    assert Uniform(count).scenes(frames, [0.0] * frames) == [Scene(0, frames, wanted)]


def test_no_frame_is_farther_from_its_anchor_than_half_a_part() -> None:
    for frames in range(1, 40):
        for count in range(1, frames + 1):
            (scene,) = Uniform(count).scenes(frames, [])
            assert len(set(scene.anchors)) == count
            far = max(min(abs(f - a) for a in scene.anchors) for f in range(frames))
            assert far <= -(-frames // (2 * count))
            assert sorted([*scene.anchors, *scene.others()]) == list(range(frames))


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        (4, Uniform(4)),
        ("middle", Uniform(1)),
        ("first", Listed((0,))),
        ([7, 2], Listed((7, 2))),
        ({"scenes": 2}, EachScene(2)),
        (EachScene(1, 9.0), EachScene(1, 9.0)),
    ],
)
def test_policies_by_name(value: Any, policy: Any) -> None:
    assert parse_anchors(value) == policy


@pytest.mark.parametrize("value", ["last", 0, -1, True, 2.5, [], [1, 1], [-1], {"scenes": 0}, {}])
def test_other_policies_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^anchors="):
        parse_anchors(value)


def test_more_anchors_than_frames_are_refused() -> None:
    for policy in (Uniform(4), EachScene(4), Listed((3,))):
        with pytest.raises(ValueError, match=r"anchors=(4|\[3\]): the clip has"):
            policy.scenes(3, [0.0] * 3)


def clip(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Scenes of moving texture: each frame is the one before moved by a pixel, and some noise."""
    rng = np.random.default_rng(seed)
    frames = []
    for length in lengths:
        ground = rng.integers(0, 256, (6, 6, 3)).repeat(12, 0).repeat(12, 1)
        for i in range(length):
            noisy = np.roll(ground, i, 1) + rng.normal(0, 6, ground.shape)
            frames.append(noisy.clip(0, 255).astype(np.uint8))
    return frames


def changes_of(frames: list[np.ndarray]) -> list[float]:
    seen = [signature(frame) for frame in frames]
    return [0.0, *(change(a, b) for a, b in pairwise(seen))]


def test_cuts_are_found_by_content() -> None:
    changes = changes_of(clip(20, 9, 14))
    assert find_cuts(changes, 24.0, 6) == [20, 29]
    scenes = EachScene(2).scenes(43, changes)
    assert [(scene.start, scene.stop) for scene in scenes] == [(0, 20), (20, 29), (29, 43)]
    assert [scene.anchors for scene in scenes] == [(5, 15), (22, 26), (32, 39)]


def test_what_is_no_cut() -> None:
    assert find_cuts(changes_of(clip(30)), 24.0, 6) == []
    rng = np.random.default_rng(1)
    flicker = [rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(30)]
    assert find_cuts(changes_of(flicker), 5.0, 6) == []  # as much change everywhere
    assert find_cuts(changes_of(clip(4, 20, 4)), 24.0, 6) == []  # too short for scenes
    assert find_cuts([0.0], 24.0, 1) == []


def test_short_scenes_have_fewer_anchors() -> None:
    scenes = EachScene(9, least=6).scenes(27, changes_of(clip(20, 7)))
    assert [len(scene.anchors) for scene in scenes] == [9, 7]


def test_a_signature_is_a_mean_over_areas() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (96, 64, 3)).astype(np.uint8)
    means = pixels.reshape(32, 3, 32, 2, 3).mean((1, 3))
    assert np.abs(signature(pixels) - means).max() <= 1  # rounded to whole numbers
    assert change(signature(pixels), signature(pixels)) == 0
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert change(signature(black), signature(white)) == 255
