"""Clips with an exact truth: a still and its edit, moved along the same known smooth path.

The still lies on a plane that continues by reflection; a camera pans, zooms, turns and shears over
it. A second still may lie nearer to the camera, cut to a shape: it moves faster, and hides what is
behind it. So the flow between any two frames, and what is hidden, follow from a few matrices.

Pixels are (x, y), centres at whole numbers, as in `metrics.video.pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Most of each motion: pan in sides of a frame, zoom as a logarithm, angles in radians, shear.
MOTIONS = {"pan": 0.1, "zoom": 0.15, "rotation": 0.17, "shear": 0.08}
_NEARER = 1.8  # times as fast as what is far
_PURE = 0.02  # of another layer, at most, in a pixel that moves with one layer


@dataclass(frozen=True)
class Still:
    """A picture, an instruction, and all edits of the picture that fulfil it.

    Attributes:
        name: of the still; clips of one name are no independent samples.
        source: (3, H, W) floats in [0, 1].
        targets: (S, 3, H, W); S > 1 where the instruction leaves a choice.
        captions: what the source and what the target shows, where that is known.
    """

    name: str
    instruction: str
    source: Tensor
    targets: Tensor
    captions: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.source.shape)
        if len(shape) != 3 or shape[0] != 3 or tuple(self.targets.shape[1:]) != shape:
            raise ValueError(
                f"{self.name}: needs a source (3, H, W) and targets (S, 3, H, W), got {shape} and "
                f"{tuple(self.targets.shape)}"
            )


@dataclass(frozen=True)
class Motion:
    """How the layers of a clip move.

    Attributes:
        size: height and width of the frames.
        far: (T, 3, 3) float64: places in a frame → places in the still, homogeneous.
        near: the same for the layer in front; None where there is none.
        mask: (H, W) in [0, 1]: what the layer in front covers, in places of its still.
    """

    size: tuple[int, int]
    far: Tensor
    near: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.far)

    def flow(self, first: int, second: int) -> Tensor:
        """(2, H, W) float64: where each pixel of one frame lies in another, as offsets (x, y).

        A pixel belongs to the layer that covers more than half of it.
        """
        places = self._grid()
        flow = _moved(self.far, first, second, places) - places
        if self.near is not None:
            near = _moved(self.near, first, second, places) - places
            flow = torch.where((self._cover(first, places) > 0.5)[..., None], near, flow)
        return flow.permute(2, 0, 1)

    def seen(self, first: int, second: int) -> Tensor:
        """(H, W) bool: which pixels of the first frame can be seen in the second.

        Not those that leave the picture or go behind the layer in front, and none where the two
        layers mix, in the pixel or in those of the second frame that surround its place: they have
        no one flow.
        """
        places = self._grid()
        target = places + self.flow(first, second).permute(1, 2, 0)
        height, width = self.size
        last = torch.tensor([width - 1, height - 1], dtype=target.dtype)
        seen = ((target > -1e-9) & (target < last + 1e-9)).all(-1)
        if self.near is None:
            return seen
        covers = [self._cover(first, places)]
        around = target.floor(), target.ceil()
        covers += [
            self._cover(second, torch.stack([x[..., 0], y[..., 1]], -1))
            for x in around
            for y in around
        ]
        cover = torch.stack(covers)
        return seen & ((cover <= _PURE).all(0) | (cover >= 1 - _PURE).all(0))

    def frames(self, far: Tensor, near: Tensor | None = None) -> Tensor:
        """The clip (T, 3, H, W) of stills (3, H, W), by cubic interpolation."""
        places = self._grid()
        pictures = []
        for t in range(len(self)):
            frame = _read(far, _apply(self.far[t], places))
            if self.near is not None and near is not None:
                cover = self._cover(t, places).to(far.dtype)
                frame = torch.lerp(frame, _read(near, _apply(self.near[t], places)), cover)
            pictures.append(frame)
        return torch.stack(pictures).clamp(0, 1)

    def _grid(self) -> Tensor:
        height, width = self.size
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([x, y], -1).double()

    def _cover(self, frame: int, places: Tensor) -> Tensor:
        """How much the layer in front covers at places (H, W, 2) of a frame: (H, W)."""
        assert self.near is not None
        assert self.mask is not None
        inside = _apply(self.near[frame], places)
        return _sample(self.mask[None].double(), inside, "bilinear", "zeros")[0]


@dataclass(frozen=True)
class MovingStill:
    """A clip, what it should become, and how it moves.

    Attributes:
        name, instruction, captions: of the still.
        source: (T, 3, H, W) in [0, 1].
        targets: (S, T, 3, H, W): each of the still's targets, moved as the source is.
        motion: exact.
    """

    name: str
    instruction: str
    source: Tensor
    targets: Tensor
    motion: Motion
    captions: tuple[str, str] | None = None

    def backward(self) -> tuple[Tensor, Tensor]:
        """The flow from every frame to the one before, and which pixels are seen there.

        (T − 1, 2, H, W) and (T − 1, H, W) bool: what a warp error needs.
        """
        pairs = [(t + 1, t) for t in range(len(self.motion) - 1)]
        flows = torch.stack([self.motion.flow(*pair) for pair in pairs])
        return flows, torch.stack([self.motion.seen(*pair) for pair in pairs])


def move(
    still: Still,
    frames: int,
    size: tuple[int, int],
    seed: int,
    *,
    near: Still | None = None,
    motions: Sequence[str] = tuple(MOTIONS),
) -> MovingStill:
    """The clip of a still, and of each of its targets.

    Args:
        frames: T, from 2.
        size: height and width of the frames, in pixels of the still. A still that is larger shows
            its middle; what lies beyond its border is its reflection.
        seed: of the path.
        near: a still in front, of the same instruction and number of targets, cut to a shape.
        motions: which of `MOTIONS` the path has.

    Raises ValueError for unknown motions, fewer than two frames, or stills that do not match.
    """
    if unknown := [name for name in motions if name not in MOTIONS]:
        raise ValueError(f"motion {unknown[0]!r}: allowed are {', '.join(MOTIONS)}")
    if frames < 2:
        raise ValueError(f"frames={frames}: must be 2 or more")
    rng = np.random.default_rng([seed, 7])
    path = camera_path(frames, rng, motions)
    centre = _centre(still.source.shape[-2:])
    motion = Motion(size, camera(path, size, centre))
    if near is None:
        targets = [motion.frames(target) for target in still.targets]
        source = motion.frames(still.source)
    else:
        if near.instruction != still.instruction or len(near.targets) != len(still.targets):
            raise ValueError(f"{still.name} and {near.name} are not edited alike")
        own = {name: values * (_NEARER if name == "pan" else 1) for name, values in path.items()}
        matrices = camera(own, size, _centre(near.source.shape[-2:]))
        mask = shape_mask((near.source.shape[-2], near.source.shape[-1]), size, rng)
        motion = Motion(size, motion.far, matrices, mask)
        source = motion.frames(still.source, near.source)
        pairs = zip(still.targets, near.targets, strict=True)
        targets = [motion.frames(far, front) for far, front in pairs]
    return MovingStill(
        still.name, still.instruction, source, torch.stack(targets), motion, still.captions
    )


def moved_alike(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """All pictures under one random affine map, which leaves a pair of source and edit a pair.

    Pan, zoom, rotation and shear are uniform up to `MOTIONS`; beyond a border lies the reflection.

    Args:
        pictures: (H, W, 3) uint8, of one size.
    """
    height, width = pictures[0].shape[:2]
    path = {
        name: rng.uniform(-most, most, (1, 2) if name == "pan" else 1)
        for name, most in MOTIONS.items()
    }
    motion = Motion((height, width), camera(path, (height, width), _centre((height, width))))
    moved = []
    for picture in pictures:
        still = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        frame = motion.frames(still)[0].permute(1, 2, 0)
        moved.append((frame * 255).round().byte().numpy())
    return moved


def camera_path(
    frames: int, rng: np.random.Generator, motions: Sequence[str] = tuple(MOTIONS)
) -> dict[str, np.ndarray]:
    """Each motion over time, (T,) or for `pan` (T, 2): a sine of random phase, .4 to 1 periods.

    What is not among `motions` stays 0. All are drawn, so that leaving one out changes no other.
    """
    time = np.linspace(0, 1, frames)
    path = {}
    for name, most in MOTIONS.items():
        count = 2 if name == "pan" else 1
        phase = rng.uniform(0, 1, count)
        periods = rng.uniform(0.4, 1, count) * rng.choice([-1, 1], count)
        values = most * np.sin(2 * np.pi * (time[:, None] * periods + phase))
        path[name] = (values if name == "pan" else values[:, 0]) * (name in motions)
    return path


def camera(
    path: dict[str, np.ndarray], size: tuple[int, int], centre: tuple[float, float]
) -> Tensor:
    """(T, 3, 3) float64: places in a frame → places in the still whose centre (x, y) is given."""
    height, width = size
    matrices = []
    for pan, zoom, angle, shear in zip(*(path[name] for name in MOTIONS), strict=True):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = np.exp(-zoom) * turn @ np.array([[1, shear], [0, 1]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        matrix[:2, 2] = np.array(centre) + pan * [width, height] - linear @ middle
        matrices.append(matrix)
    return torch.from_numpy(np.stack(matrices))


def shape_mask(size: tuple[int, int], frame: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """A rounded shape in the middle of (H, W), about a third of the frame wide: (H, W) in [0, 1].

    Its border is a pixel wide: r(θ) = r₀ (1 + Σ aₖ cos(kθ + φₖ)), k = 2, 3, 4.
    """
    x0, y0 = _centre(size)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    angle = np.arctan2(y - y0, x - x0)
    radius = min(frame) * rng.uniform(0.16, 0.24) * np.ones(size)
    for k in (2, 3, 4):
        wave = np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        radius += min(frame) * rng.uniform(0, 0.08 / k) * wave
    distance = np.hypot(x - x0, y - y0)
    return torch.from_numpy(np.clip(radius - distance + 0.5, 0, 1))


def _centre(size: Sequence[int]) -> tuple[float, float]:
    return (size[1] - 1) / 2, (size[0] - 1) / 2


def _apply(matrix: Tensor, places: Tensor) -> Tensor:
    return places @ matrix[:2, :2].T + matrix[:2, 2]


def _moved(camera: Tensor, first: int, second: int, places: Tensor) -> Tensor:
    return _apply(torch.linalg.inv(camera[second]) @ camera[first], places)


def _read(still: Tensor, places: Tensor) -> Tensor:
    return _sample(still, places.to(still.dtype), "bicubic", "reflection")


def _sample(picture: Tensor, places: Tensor, mode: Any, beyond: Any) -> Tensor:
    """(C, H, W) at places (h, w, 2): (C, h, w)."""
    height, width = picture.shape[-2:]
    last = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=places.dtype)
    return functional.grid_sample(
        picture[None],
        (2 * places / last - 1)[None],
        mode=mode,
        padding_mode=beyond,
        align_corners=True,
    )[0]
