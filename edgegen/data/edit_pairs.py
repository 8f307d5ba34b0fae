"""Pictures before and after an edit: drawings and crops as sources, with their true targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from .edits import HUES, PHOTO_EDITS, change, recoloured
from .emoji import FAMILY, TONES, EmojiSet, Picture, Split
from .instructions import AMBIGUOUS, PAINTINGS, ambiguous_form, family
from .painting import PaintedCrops
from .views import BACKGROUNDS, composite, place

LEAST_CHANGE = 0.03  # root mean square, white at 1: what changes less is no edit

# How often a family is drawn for training; those that a source lacks are left out.
FAMILIES: Mapping[str, float] = {
    "style": 0.3,
    "tone": 0.25,
    "background": 0.2,
    "flip": 0.05,
    "painting": 0.4,
    "rule": 0.3,
    "season": 0.15,
    "colour": 0.3,
}


@dataclass(frozen=True)
class Placement:
    """Where a drawing stands: mirrored, scaled, shifted by a share of the side, on a colour."""

    flip: bool = False
    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    background: str = "white"


@dataclass(frozen=True)
class Source:
    """A picture with everything that can be made of it.

    Attributes:
        picture: (S, S, 3) uint8.
        subject: the concept or file; pairs of one subject are alike.
        kind: `emoji` or `natural`.
        targets: name of an edit (`instructions.EDITS`) to what draws its true target.
        moved: names of the edits whose targets have other outlines than the source.
    """

    picture: np.ndarray
    subject: str
    kind: Literal["emoji", "natural"]
    targets: Mapping[str, Callable[[], np.ndarray]]
    moved: frozenset[str]
    _drawn: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def target(self, name: str) -> np.ndarray:
        """The true target of an edit: (S, S, 3) uint8."""
        if name not in self._drawn:
            self._drawn[name] = self.targets[name]()
        return self._drawn[name]

    def changes(self, name: str) -> bool:
        """Whether the edit changes the picture by `LEAST_CHANGE` at least."""
        return change(self.picture, self.target(name)) >= LEAST_CHANGE

    def possible(self, instruction: str) -> list[str]:
        """The edits that are right answers to an instruction, each with a target of its own.

        One for an edit's own name; for an ambiguous `any/…` every member of the family that
        changes the picture. Empty where there is none.
        """
        if instruction not in AMBIGUOUS:
            return [instruction] if instruction in self.targets else []
        return [
            name
            for name in self.targets
            if ambiguous_form(name) == instruction and self.changes(name)
        ]


class Sources(Protocol):
    """Sources by number."""

    def __len__(self) -> int: ...

    def source(self, index: int, rng: np.random.Generator | None) -> Source:
        """Source number `index`, in a view that `rng` draws; None: as it is."""
        ...


class EmojiSources:
    """The drawings of one split as sources.

    Edits are another style of the same concept and skin tone, another skin tone in the same style,
    another hue of the drawing, its mirror image where the label allows it, and another background.
    All targets are drawings of the same split, or made of the source.

    Args:
        emoji: with `tones`, or no skin tone is ever changed.
        split: see `EmojiSet`.
        size: side in pixels; drawings have 64 and are enlarged.
        scale, shift: range of a drawing's size in views, and largest shift as a share of the side.
        flip, coloured: shares of mirrored views and of those on a coloured background.
    """

    def __init__(
        self,
        emoji: EmojiSet,
        split: Split,
        size: int = 96,
        *,
        scale: tuple[float, float] = (0.75, 1.0),
        shift: float = 0.04,
        flip: float = 0.1,
        coloured: float = 0.25,
    ) -> None:
        self.emoji, self.size = emoji, size
        self.scale, self.shift, self.flip, self.coloured = scale, shift, flip, coloured
        self.items = emoji.indices(split)
        self._found: dict[tuple[int, int, str], int] = {}
        self._tones: dict[tuple[int, str], list[int]] = {}
        for index in self.items:
            picture = emoji.pictures[index]
            self._found[picture.concept, picture.tone, picture.style] = index
            self._tones.setdefault((picture.concept, picture.style), []).append(picture.tone)

    def __len__(self) -> int:
        return len(self.items)

    def placement(self, index: int, rng: np.random.Generator) -> Placement:
        """A random view of source number `index`."""
        concept = self.emoji.concepts[self.emoji.pictures[self.items[index]].concept]
        flip = bool(rng.random() < self.flip) and concept.may_flip
        dx, dy = rng.uniform(-self.shift, self.shift, 2)
        others = [name for name in BACKGROUNDS if name != "white"]
        background = str(rng.choice(others)) if rng.random() < self.coloured else "white"
        return Placement(flip, float(rng.uniform(*self.scale)), float(dx), float(dy), background)

    def source(self, index: int, rng: np.random.Generator | None = None) -> Source:
        """See `Sources`."""
        where = Placement() if rng is None else self.placement(index, rng)
        own = self.items[index]
        picture, concept = self.emoji.pictures[own], self.emoji.concepts
        rgba = self._drawn(own, where)

        targets: dict[str, Callable[[], np.ndarray]] = {}
        moved = set()
        for name, other in self._redrawings(picture):
            targets[name] = partial(self._drawn_on, other, where)
            if FAMILY[self.emoji.pictures[other].style] != FAMILY[picture.style]:
                moved.add(name)
        for colour in HUES:
            targets[f"colour/{colour}"] = partial(_recoloured_on, rgba, colour, where.background)
        if concept[picture.concept].may_flip:
            mirrored = np.ascontiguousarray(rgba[:, ::-1])
            targets["flip/mirror"] = partial(_on, mirrored, where.background)
            moved.add("flip/mirror")
        for background in BACKGROUNDS:
            if background != where.background:
                targets[f"background/{background}"] = partial(_on, rgba, background)
        subject = concept[picture.concept].hexcode
        return Source(_on(rgba, where.background), subject, "emoji", targets, frozenset(moved))

    def _redrawings(self, picture: Picture) -> Iterator[tuple[str, int]]:
        for style in FAMILY:
            other = self._found.get((picture.concept, picture.tone, style))
            if style != picture.style and other is not None:
                yield f"style/{style}", other
        for tone in self._tones[picture.concept, picture.style]:
            if tone != picture.tone:
                other = self._found[picture.concept, tone, picture.style]
                yield f"tone/{TONES[tone] or 'default'}", other

    def _drawn(self, index: int, where: Placement) -> np.ndarray:
        rgba = Image.fromarray(self.emoji.rgba(index))
        grown = np.asarray(rgba.resize((self.size, self.size), Image.Resampling.BICUBIC))
        dx, dy = where.dx * self.size, where.dy * self.size
        return place(grown, where.scale, dx, dy, where.flip)

    def _drawn_on(self, index: int, where: Placement) -> np.ndarray:
        return _on(self._drawn(index, where), where.background)


def _on(rgba: np.ndarray, background: str) -> np.ndarray:
    return composite(rgba, np.array(BACKGROUNDS[background]))


def _recoloured_on(rgba: np.ndarray, colour: str, background: str) -> np.ndarray:
    return _on(np.dstack([recoloured(rgba[..., :3], colour), rgba[..., 3]]), background)


class CropSources:
    """Crops of photographs and video frames as sources: exact rules, and a teacher's paintings."""

    def __init__(self, crops: PaintedCrops) -> None:
        self.crops, self.size = crops, crops.size

    def __len__(self) -> int:
        return len(self.crops)

    def source(self, index: int, rng: np.random.Generator | None = None) -> Source:
        """See `Sources`; crops have one view only."""
        crop = self.crops.crop(index)
        targets: dict[str, Callable[[], np.ndarray]] = {
            **{name: partial(rule, crop) for name, rule in PHOTO_EDITS.items()},
            **{f"painting/{name}": partial(self.crops.painting, index, name) for name in PAINTINGS},
        }
        return Source(crop, self.crops.file(index), "natural", targets, frozenset())


def drawn_edits(
    source: Source,
    count: int,
    rng: np.random.Generator,
    families: Mapping[str, float] = FAMILIES,
) -> list[str]:
    """Up to `count` different edits that change the source: a family by its weight, then a member.

    Raises ValueError for a family that does not exist.
    """
    if unknown := sorted(set(families) - set(FAMILIES)):
        raise ValueError(f"unknown family {unknown[0]!r}; allowed: {', '.join(FAMILIES)}")
    left: dict[str, list[str]] = {}
    for name in source.targets:
        if families.get(family(name), 0) > 0:
            left.setdefault(family(name), []).append(name)
    found: list[str] = []
    while left and len(found) < count:
        weights = np.array([families[key] for key in left], np.float64)
        key = list(left)[int(rng.choice(len(left), p=weights / weights.sum()))]
        name = left[key].pop(int(rng.integers(len(left[key]))))
        if not left[key]:
            del left[key]
        if source.changes(name):
            found.append(name)
    return found
