"""The flow against closed forms, the moved pixels against the texture's own formula."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from edgegen.data.moving_stills import MOTIONS, Motion, Still, camera_path, move, shape_mask
from edgegen.metrics.video.pixels import warp

SIZE = (40, 56)


def still(seed: int = 0, size: tuple[int, int] = (60, 70), targets: int = 1) -> Still:
    """A few slow waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [
        0.5 + 0.4 * np.sin(x * rng.uniform(0.05, 0.3) + y * rng.uniform(0.05, 0.3) + 6 * i)
        for i in range(3)
    ]
    source = torch.from_numpy(np.stack(waves)).float()
    return Still(f"waves {seed}", "invert it", source, torch.stack([1 - source] * targets))


def path(frames: int, seed: int, *motions: str) -> dict[str, np.ndarray]:
    return camera_path(frames, np.random.default_rng([seed, 7]), motions)


def pixel_grid() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return x.double() - (SIZE[1] - 1) / 2, y.double() - (SIZE[0] - 1) / 2


def test_the_flow_of_a_pan_is_its_way() -> None:
    pan = path(5, 3, "pan")["pan"]
    motion = move(still(), 5, SIZE, 3, motions=["pan"]).motion
    for a, b in ((0, 1), (4, 2)):
        way = (pan[a] - pan[b]) * [SIZE[1], SIZE[0]]
        assert np.hypot(*way) > 1
        flow = motion.flow(a, b)
        assert flow[0] == pytest.approx(np.full(SIZE, way[0]))
        assert flow[1] == pytest.approx(np.full(SIZE, way[1]))


def test_the_flow_of_a_turn_and_of_a_zoom() -> None:
    x, y = pixel_grid()
    angle = np.diff(path(4, 1, "rotation")["rotation"])[1]
    flow = move(still(), 4, SIZE, 1, motions=["rotation"]).motion.flow(1, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(flow[0], (cos * x + sin * y - x).double())
    torch.testing.assert_close(flow[1], (-sin * x + cos * y - y))
    zoom = np.diff(path(4, 1, "zoom")["zoom"])[1]
    flow = move(still(), 4, SIZE, 1, motions=["zoom"]).motion.flow(1, 2)
    torch.testing.assert_close(flow, (math.exp(zoom) - 1) * torch.stack([x, y]))


def test_the_flow_of_a_shear() -> None:
    x, y = pixel_grid()
    shear = np.diff(path(4, 2, "shear")["shear"])[0]
    flow = move(still(), 4, SIZE, 2, motions=["shear"]).motion.flow(0, 1)
    torch.testing.assert_close(flow, torch.stack([-shear * y, 0 * x]))


@pytest.mark.parametrize("near", [False, True])
def test_frames_follow_the_flow_up_to_interpolation(near: bool) -> None:
    clip = move(still(), 6, SIZE, 5, near=still(1) if near else None)
    flows, seen = clip.backward()
    assert flows.shape == (5, 2, *SIZE)
    for t, (before, after) in enumerate(pairwise(clip.source)):
        assert seen[t].float().mean() > 0.4
        moved = warp(before.double(), flows[t])
        error = (moved - after).abs().mean(0)
        assert error[seen[t]].max() < 0.03
        wrong = (warp(before.double(), -flows[t]) - after).abs().mean(0)
        assert wrong[seen[t]].mean() > 5 * error[seen[t]].mean()


def test_flows_there_and_back_cancel() -> None:
    motion = move(still(), 6, SIZE, 8, near=still(1)).motion
    there, back, seen = motion.flow(0, 4), motion.flow(4, 0), motion.seen(0, 4)
    # Within a layer the flow is affine, so reading it between pixels is exact; not across a border.
    returned = (there + warp(back, there)).norm(dim=0)[seen]
    assert (returned < 1e-6).double().mean() > 0.9


def test_what_is_hidden_is_known() -> None:
    """A square of 10 × 6 pixels goes 4 to the right and 2 down before a ground at rest."""
    mask = torch.zeros(30, 30)
    mask[12:18, 5:15] = 1
    rest = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    near = rest.clone()
    near[1, :2, 2] = torch.tensor([-4.0, -2.0])
    motion = Motion((30, 30), rest, near, mask)
    before, after = torch.zeros(2, 30, 30, dtype=torch.bool)
    before[12:18, 5:15], after[14:20, 9:19] = True, True
    flow = motion.flow(0, 1)
    assert torch.equal(flow, torch.tensor([4.0, 2.0])[:, None, None] * before)
    assert torch.equal(motion.seen(0, 1), ~(after & ~before))
    # Coming back: the ground that the square covered before is new.
    assert torch.equal(motion.seen(1, 0), ~(before & ~after))
    white, black = torch.ones(3, 30, 30), torch.zeros(3, 30, 30)
    frames = motion.frames(black, white)
    assert torch.equal(frames[0, 0] > 0.5, before)
    assert torch.equal(frames[1, 0] > 0.5, after)


def test_what_leaves_the_picture_is_not_seen() -> None:
    rest = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    rest[1, 0, 2] = 3.0  # the camera goes right
    seen = Motion((5, 9), rest).seen(0, 1)
    assert torch.equal(seen, (torch.arange(9) >= 3).expand(5, 9))


def test_targets_move_as_the_source() -> None:
    """Inversion commutes with interpolation, so the truth of every frame is its inverse."""
    clip = move(still(targets=2), 4, SIZE, 2, near=still(1, targets=2))
    assert clip.targets.shape == (2, 4, 3, *SIZE)
    for target in clip.targets:
        torch.testing.assert_close(target, 1 - clip.source, rtol=0, atol=2e-6)


def test_beyond_its_border_a_still_is_its_reflection() -> None:
    rest = torch.eye(3, dtype=torch.float64)[None].clone()
    rest[0, 0, 2] = -4.0
    source = still().source
    frame = Motion((60, 70), rest).frames(source)[0]
    torch.testing.assert_close(frame[:, :, :5], source[:, :, :5].flip(2), rtol=0, atol=1e-5)


def test_paths_are_smooth_seeded_and_bounded() -> None:
    both = path(16, 4, *MOTIONS)
    alone = path(16, 4, "zoom")
    assert np.array_equal(both["zoom"], alone["zoom"])
    assert not alone["pan"].any()
    for name, most in MOTIONS.items():
        values = both[name].reshape(16, -1)
        assert 0.2 * most < abs(values).max() <= most
        assert abs(np.diff(values, axis=0)).max() <= most * 2 * np.pi / 15
    assert not np.array_equal(path(16, 5, *MOTIONS)["pan"], both["pan"])
    first, again = (move(still(), 3, SIZE, 9, near=still(1)).source for _ in range(2))
    assert torch.equal(first, again)


def test_shapes_are_in_the_middle_and_soft_by_a_pixel() -> None:
    mask = shape_mask((50, 60), (50, 60), np.random.default_rng(0))
    assert mask[25, 30] == 1
    assert mask[0].max() == mask[:, 0].max() == 0
    assert 0.05 < mask.mean() < 0.3
    assert ((mask > 0) & (mask < 1)).double().mean() < 0.05


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="motion 'spin': allowed are pan, zoom, rotation, shear"):
        move(still(), 3, SIZE, 0, motions=["spin"])
    with pytest.raises(ValueError, match="frames=1: must be 2 or more"):
        move(still(), 1, SIZE, 0)
    with pytest.raises(ValueError, match="are not edited alike"):
        move(still(), 3, SIZE, 0, near=still(1, targets=2))
    with pytest.raises(ValueError, match=r"needs a source \(3, H, W\)"):
        Still("a", "b", torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 5))
