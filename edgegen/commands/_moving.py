"""Held-out pairs made to clips that move along known paths, and what is measured on such clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..data.edit_pairs import Source, Sources
from ..data.held_out_pairs import Pair, held_out_pairs
from ..data.moving_stills import MovingStill, Still, move
from ..media.clips import Frame
from ..metrics.quality.backbone import features_of, name_of
from ..metrics.quality.pictures import as_floats
from ..metrics.video.correspondence import landing, token_grid, token_places
from ..metrics.video.embeddings import frame_consistency, tem_con
from ..metrics.video.flow import dis_flow
from ..metrics.video.pixels import flicker, known_warp_error, warp_error
from ..metrics.video.truth import clip_error, clip_regret, gap_closed, target_errors
from ._filmed import Filmed


@dataclass(frozen=True)
class Ask:
    """A clip to edit: how to make it, and in which group it counts.

    Attributes:
        pair: the still and what is asked of it; `near` the one in front, edited alike, or None.
        group: `one` where there is one right answer, `any` where there are several.
        kind: of the sources, such as `emoji`.
    """

    sources: Sources = field(repr=False, compare=False)
    pair: Pair
    near: Pair | None
    group: Literal["one", "any"]
    kind: str

    @property
    def key(self) -> list[Any]:
        """What tells it from others."""
        return [self.pair.index, self.near and self.near.index, self.kind]

    @property
    def subject(self) -> str:
        """What clips share that are no independent samples."""
        return self.sources.source(self.pair.index, None).subject

    def clip(self, frames: int, size: int) -> MovingStill:
        """The clip; its path depends on the still and the instruction alone."""
        source = self.sources.source(self.pair.index, None)
        answers = source.possible(self.pair.instruction)
        text = f"{source.subject}:{self.pair.index}:{self.pair.instruction}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        near = None
        if self.near is not None:
            other = self.sources.source(self.near.index, None)
            near = _still(other, self.pair.text, answers)
        return move(_still(source, self.pair.text, answers), frames, (size, size), seed, near=near)


def asks_of(
    sources: Sources, kind: str, half: Literal["dev", "test"], count: int, ambiguous: bool
) -> list[Ask]:
    """Up to `count` clips of held-out pairs; every other one has a still in front, if any fits."""
    pairs = held_out_pairs(sources, half, count, ambiguous=ambiguous)
    group: Literal["one", "any"] = "any" if ambiguous else "one"
    return [
        Ask(sources, pair, _near(sources, pairs, place) if place % 2 else None, group, kind)
        for place, pair in enumerate(pairs)
    ]


def _near(sources: Sources, pairs: Sequence[Pair], place: int) -> Pair | None:
    """The next pair, of another subject, that can be edited as this one is."""
    pair = pairs[place]
    source = sources.source(pair.index, None)
    answers = source.possible(pair.instruction)
    for other in [*pairs[place + 1 :], *pairs[:place]]:
        found = sources.source(other.index, None)
        if found.subject != source.subject and set(answers) <= set(found.targets):
            return other
    return None


def _still(source: Source, text: str, answers: Sequence[str]) -> Still:
    targets = as_floats(source.target(name) for name in answers)
    return Still(source.subject, text, as_floats([source.picture])[0], targets)


class Shown:
    """The source of a clip as the editor takes it, 25 frames a second."""

    aspect = Fraction(1)
    time_base = Fraction(1, 25)

    def __init__(self, clip: MovingStill | Filmed, name: str) -> None:
        self.name = name
        self.frames = (clip.source * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def __iter__(self) -> Iterator[Frame]:
        return (Frame(pixels, number, 1) for number, pixels in enumerate(self.frames))


def scores_of(
    clip: MovingStill | Filmed, edited: Tensor, group: str, judges: Sequence[nn.Module]
) -> dict[str, float]:
    """What is measured on one edited clip, (T, 3, H, W) in [0, 1]; NaN where it says nothing.

    Clips whose flow is not known have scores of their own, which end in the group's name; their
    warp error is by a flow estimated on the source (DIS, which needs the extra `metrics`).
    """
    found: dict[str, float] = {}
    errors = target_errors(edited, clip.targets) if len(clip.targets) else None
    if errors is not None:
        found |= {
            f"video/error_{group}": clip_error(errors),
            f"video/closed_{group}": gap_closed(errors, target_errors(clip.source, clip.targets)),
        }
        if group == "any":
            found["video/regret"] = clip_regret(errors)
        if group == "one":  # where the middle frame is the anchor, these are farthest from it
            found["video/error_one_ends"] = clip_error(errors[:, [0, -1]])
    tail = f"_{group}" if clip.motion is None else ""
    if clip.motion is None:
        found[f"video/warp_error_dis{tail}"] = warp_error(clip.source, edited, dis_flow)
    elif errors is not None:
        best = clip.targets[int(errors.mean(1).argmin())]
        backward, seen = clip.backward()
        found["video/warp_error"] = known_warp_error(edited, backward, seen)
        found["video/warp_error_truth"] = known_warp_error(best, backward, seen)
    found[f"video/flicker{tail}"] = flicker(edited)
    for judge in judges:
        features = features_of(judge, edited, len(edited))
        name = name_of(judge)
        found[f"video/tem_con_{name}{tail}"] = tem_con(features)
        found[f"video/frame_consistency_{name}{tail}"] = frame_consistency(features)
    return found


class AttentionProbe:
    """Where the attention of the finest layers lands in the anchors, of one clip.

    Args:
        clip: under edit.
        anchors: of each frame, in the order of the bank.
        latents: height and width of the latents.
    """

    def __init__(
        self, clip: MovingStill, anchors: Sequence[Sequence[int]], latents: tuple[int, int]
    ) -> None:
        self._motion, self._anchors, self._latents = clip.motion, anchors, latents
        self._tokens = 0
        self._places: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._rows: list[tuple[float, float, float]] = []

    def __call__(self, layer: str, step: int, frames: Sequence[int], weights: Tensor) -> None:
        """A batch of frames in one layer and step; the branch with the text counts."""
        tokens = weights.shape[2]
        if tokens < self._tokens:
            return
        if tokens > self._tokens:  # a finer layer than those before
            self._tokens, self._rows = tokens, []
            self._places.clear()
        grid = token_grid(self._latents, tokens)
        for frame, own in dict(zip(frames, weights[0].cpu(), strict=True)).items():
            pairs = [self._place(frame, anchor, grid) for anchor in self._anchors[frame]]
            places, seen = (torch.stack(each) for each in zip(*pairs, strict=True))
            found = landing(own, places, seen, grid)
            if found.hit is not None and found.chance is not None:
                self._rows.append((found.anchors, found.hit, found.chance))

    def scores(self) -> dict[str, float]:
        """Means over frames, layers and steps; none where nothing could be seen."""
        if not self._rows:
            return {}
        on_anchors, hit, chance = np.mean(self._rows, 0).tolist()
        return {
            "video/attention_on_anchors": on_anchors,
            "video/attention_hit": hit,
            "video/attention_chance": chance,
            "video/attention_times_chance": hit / chance,
        }

    def _place(self, frame: int, anchor: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if (frame, anchor) not in self._places:
            motion = self._motion
            flow, seen = motion.flow(frame, anchor), motion.seen(frame, anchor)
            self._places[frame, anchor] = token_places(flow, seen, grid)
        return self._places[frame, anchor]


def anchors_of(scenes: Sequence[Any]) -> list[tuple[int, ...]]:
    """The anchors of every frame of a clip."""
    return [scene.anchors for scene in scenes for _ in range(scene.start, scene.stop)]
