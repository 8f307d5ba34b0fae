"""Clips of unknown flow: animated drawings with a true edit, and clips without any truth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..assets import ROOT, verify
from ..data.animated import ANIMATED_STYLE, AnimatedTones, subject_of
from ..data.emoji import EmojiSet
from ..data.instructions import PHRASINGS
from ..media.clips import open_clip
from ..metrics.quality.pictures import as_floats

REAL = ("painting/watercolor", "rule/night", "any/season")
"""What is asked of clips without truth."""


@dataclass(frozen=True)
class Filmed:
    """A clip as it is.

    Attributes:
        source: (T, 3, H, W) in [0, 1].
        targets: (S, T, 3, H, W): the right answers; none, S = 0, where no truth is known.
    """

    name: str
    instruction: str
    source: Tensor
    targets: Tensor
    motion: None = None


@dataclass(frozen=True)
class ToneAsk:
    """An animated drawing that is asked for another skin tone.

    Attributes:
        group: `tone_known` where a drawing of that subject and style may have been trained on.
    """

    tones: AnimatedTones = field(repr=False, compare=False)
    subject: str
    tone: str
    group: Literal["tone", "tone_known"] = "tone"

    @property
    def key(self) -> list[str]:
        """What tells it from others."""
        return [self.group, self.subject, self.tone]

    def clip(self, frames: int, size: int) -> Filmed:
        """Its first `frames` frames; it has a size of its own, which is that of `tones`."""
        source, target = (
            as_floats(self.tones.clip(self.subject, *tone)[:frames]) for tone in ((), (self.tone,))
        )
        text = PHRASINGS[f"tone/{self.tone}"][0]
        return Filmed(f"{self.subject} {self.tone}", text, source, target[None])


@dataclass(frozen=True)
class RealAsk:
    """A clip without truth, the middle square of it, asked for one of `REAL`."""

    file: Path
    instruction: str
    group: Literal["real"] = "real"

    @property
    def subject(self) -> str:
        return self.file.name

    @property
    def key(self) -> list[str]:
        """What tells it from others."""
        return [self.group, str(self.file), self.instruction]

    def clip(self, frames: int, size: int) -> Filmed:
        """Its first `frames` frames.

        Raises ValueError where it has fewer than two.
        """
        pictures = []
        for frame in islice(open_clip(self.file), frames):
            picture = Image.fromarray(frame.pixels)
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            square = (left, top, left + side, top + side)
            sized = picture.resize((size, size), Image.Resampling.LANCZOS, square)
            pictures.append(np.asarray(sized))
        if len(pictures) < 2:
            raise ValueError(f"real={self.file}: needs two frames or more")
        source = as_floats(pictures)
        none = torch.empty(0, *source.shape)
        return Filmed(self.file.stem, PHRASINGS[self.instruction][0], source, none)


def tone_asks(
    half: Literal["dev", "test"], count: int, size: int, trained: Collection[str] = ()
) -> list[ToneAsk]:
    """Up to `count` of the embedded animations: each subject once, then once more, and so on.

    Tones take turns from subject to subject, so that few clips show all of them.

    Args:
        trained: subjects of which a drawing in this style is trained on, see `trained_subjects`.
    """
    tones = AnimatedTones(half, size=size)
    by_subject: dict[str, list[str]] = {}
    for subject, tone in tones.asks:
        by_subject.setdefault(subject, []).append(tone)
    asks = [
        (turn, ToneAsk(tones, subject, tone, "tone_known" if subject in trained else "tone"))
        for place, (subject, each) in enumerate(by_subject.items())
        for turn, tone in enumerate(each[place % len(each) :] + each[: place % len(each)])
    ]
    return [ask for _, ask in sorted(asks, key=itemgetter(0))][:count]


def trained_subjects(emoji: EmojiSet) -> set[str]:
    """Subjects of which the training split has a drawing in the style that is animated."""
    codes = (
        emoji.concepts[picture.concept].hexcode
        for picture in emoji.pictures
        if picture.style == ANIMATED_STYLE and emoji.split_of(picture) == "train"
    )
    return {subject_of(code.split("-")) for code in codes}


def real_asks(clips: Sequence[str]) -> list[RealAsk]:
    """Every clip, asked for each of `REAL`.

    Args:
        clips: files or folders of frames, or `big_buck_bunny`, which is embedded.

    Raises FileNotFoundError for a clip that is not there.
    """
    return [
        replace(real_clip(name, "real"), instruction=instruction)
        for name in clips
        for instruction in REAL
    ]


def real_clip(name: str, option: str) -> RealAsk:
    """A file or folder of frames, or an embedded clip by its name, asked for the first of `REAL`.

    Raises FileNotFoundError, naming the option, for a clip that is not there.
    """
    embedded = {file.stem: file for file in (ROOT / "clips").glob("*.mp4")}
    file = embedded.get(name, Path(name).expanduser())
    if name in embedded:
        verify(file.parent)
    if not file.exists():
        raise FileNotFoundError(
            f"{option}={name}: no such clip; embedded are {', '.join(sorted(embedded))}"
        )
    return RealAsk(file, REAL[0])
