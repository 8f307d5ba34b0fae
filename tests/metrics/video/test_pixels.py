"""Warp error on translations whose flow is known; flicker on 8-bit frames."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgegen.metrics.video.flow import dis_flow
from edgegen.metrics.video.pixels import flicker, known_warp_error, visible, warp, warp_error


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 6, width // 6, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


def moving(frames: int, dx: int, dy: int, seed: int = 0, size: int = 64) -> Tensor:
    """A window that moves over a texture: its content moves by (dx, dy) pixels a frame."""
    wide = texture(200, 200, seed)
    starts = [(70 - dy * t, 70 - dx * t) for t in range(frames)]
    return torch.stack([wide[:, y : y + size, x : x + size] for y, x in starts])


class Shift:
    """The flow of `moving`, forward or backward as asked for: it knows the frames."""

    def __init__(self, clip: Tensor, dx: float, dy: float) -> None:
        self.clip, self.motion = clip, torch.tensor([dx, dy])

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        places = [
            next(t for t, frame in enumerate(self.clip) if torch.equal(frame, asked))
            for asked in (first, second)
        ]
        step = places[1] - places[0]
        return (step * self.motion)[:, None, None].expand(-1, *first.shape[-2:])


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (4, 5)])
def test_what_moves_with_the_source_has_no_error(dx: int, dy: int) -> None:
    source, edited = moving(4, dx, dy, seed=0), moving(4, dx, dy, seed=1)
    flow = Shift(source, dx, dy)
    assert warp_error(source, edited, flow) == pytest.approx(0, abs=1e-6)
    # The same flow in the other direction is wrong by twice the motion.
    assert warp_error(source, edited, lambda a, b: flow(b, a)) > 0.03


def test_known_flow_and_occlusion_are_used_as_they_are() -> None:
    source, edited = moving(4, 3, -2, seed=0), moving(4, 3, -2, seed=1) * 0.7
    edited[2] += 0.2
    estimated = warp_error(source, edited, Shift(source, 3, -2))
    backward = torch.tensor([-3.0, 2.0])[:, None, None].expand(3, 2, 64, 64)
    seen = torch.zeros(3, 64, 64, dtype=torch.bool)
    seen[:, :62, 3:] = True  # what has come in from the left and from below is new
    assert known_warp_error(edited, backward, seen) == pytest.approx(estimated)
    edited[1, :, :, 3:33] += 0.1  # seen from the first frame, and 3 to the right from the third
    seen[:, :, :6] = seen[:, :, 30:] = False
    mean = (0.1 + (0.2 - 0.1) + 0.2) / 3
    assert known_warp_error(edited, backward, seen) == pytest.approx(mean)
    seen[:] = False
    with pytest.raises(ValueError, match="no pixel visible"):
        known_warp_error(edited, backward, seen)
    with pytest.raises(ValueError, match="needs flow"):
        known_warp_error(edited, backward[:2], seen)


def test_a_flash_is_measured_in_full() -> None:
    source, edited = moving(3, 2, 1), moving(3, 2, 1, seed=1) * 0.5
    edited[1] += 0.25
    assert warp_error(source, edited, Shift(source, 2, 1)) == pytest.approx(0.25, abs=1e-6)
    edited[1] += 0.1
    edited[2] += 0.35
    # Steps of 0.35 and 0 on floats; 8-bit numbers would wrap where the step goes down.
    assert warp_error(source, edited, Shift(source, 2, 1)) == pytest.approx(0.35 / 2, abs=1e-6)


def test_a_still_edit_of_a_moving_source_has_an_error() -> None:
    source = moving(2, 4, 0)
    edited = moving(1, 0, 0, seed=1).expand(2, -1, -1, -1)
    # The flow leads 4 columns at the left out of the picture.
    known = (edited[0][:, :, 4:] - edited[0][:, :, :-4]).abs().mean().item()
    assert warp_error(source, edited, Shift(source, 4, 0)) == pytest.approx(known, abs=1e-6)


def test_warp_reads_between_pixels() -> None:
    ramp = torch.arange(8.0).expand(1, 6, 8)
    flow = torch.zeros(2, 6, 8)
    flow[0] = 0.25
    moved = warp(ramp, flow)
    torch.testing.assert_close(moved[0, :, :7], ramp[0, :, :7] + 0.25)
    torch.testing.assert_close(moved[0, :, 7], ramp[0, :, 7])
    flow[0], flow[1] = 0, 2
    down = torch.arange(6.0)[:, None].expand(1, 6, 8)
    torch.testing.assert_close(warp(down, flow)[0, :4], down[0, 2:])


def test_pixels_out_of_the_picture_are_not_seen() -> None:
    flow = torch.zeros(2, 10, 12)
    flow[0] = -3
    seen = visible(flow, -flow)
    assert not seen[:, :3].any()
    assert seen[:, 3:].all()


def test_pixels_that_do_not_lead_back_are_occluded() -> None:
    # A 4-wide strip moves right by 6 over a still ground.
    forward = torch.zeros(2, 8, 30)
    forward[0, :, 5:9] = 6
    backward = torch.zeros(2, 8, 30)
    backward[0, :, 11:15] = -6
    seen = visible(forward, backward)
    assert not seen[:, 11:15].any()  # covered by the strip
    assert seen[:, :11].all()
    assert seen[:, 15:].all()


@pytest.mark.parametrize(("miss", "kept"), [(0.6, True), (0.62, False)])
def test_the_threshold_grows_with_the_motion(miss: float, kept: bool) -> None:
    # Allowed are 0.5 and a hundredth of both lengths: 0.01 · (5 + 5 + miss) = 0.106.
    flow, back = torch.zeros(2, 3, 30), torch.zeros(2, 3, 30)
    flow[0], back[0] = 5, -5 - miss
    assert visible(flow, back)[1, 10].item() is kept


def test_no_visible_pixel_is_no_score() -> None:
    clip = moving(2, 0, 0)
    far = torch.full((2, 64, 64), 500.0)
    with pytest.raises(ValueError, match="no pixel visible"):
        warp_error(clip, clip, lambda a, b: far)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 4)])
def test_dis_finds_a_translation(dx: int, dy: int) -> None:
    pytest.importorskip("cv2")
    source = moving(2, dx, dy)
    found = dis_flow(source[0], source[1])
    assert found.shape == (2, 64, 64)
    inner = found[:, 12:-12, 12:-12].flatten(1)
    torch.testing.assert_close(
        inner.median(1).values, torch.tensor([dx, dy]).float(), atol=0.3, rtol=0
    )
    edited = moving(2, dx, dy, seed=1)
    still = edited[:1].expand(2, -1, -1, -1)
    assert warp_error(source, edited, dis_flow) < 0.25 * warp_error(source, still, dis_flow)


def test_flicker_on_eight_bit_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    steps = np.abs(frames[1:].astype(int) - frames[:-1].astype(int)).mean()
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    assert flicker(clip) == pytest.approx((255 - steps) / 255)
    blinking = torch.tensor([0.0, 1.0, 0.0])[:, None, None, None].expand(-1, 3, 4, 4)
    assert flicker(blinking) == 0
    assert flicker(blinking[:1].expand(3, -1, -1, -1)) == 1


def test_clips_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = moving(3, 0, 0)
    with pytest.raises(ValueError, match="one shape"):
        warp_error(clip, clip[:2], dis_flow)
    with pytest.raises(ValueError, match="T ≥ 2"):
        flicker(clip[:1])
    with pytest.raises(ValueError, match="floats"):
        flicker((clip * 255).byte())
    with pytest.raises(ValueError, match="16 pixels"):
        dis_flow(clip[0][:, :8], clip[1][:, :8])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="opencv-python-headless"):
        dis_flow(clip[0], clip[1])
