"""The domain of emoji that a model draws, as the config group `domain` names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ..data.emoji import FAMILY, STYLES, EmojiSet
from ..data.views import BACKGROUNDS, composite
from ..metrics.quality.concept import Gallery, copies
from ..metrics.quality.concept_score import ConceptScore
from ..metrics.quality.efflite0 import cached_features

_FAMILIES = sorted(set(FAMILY.values()))


def read_domain(cfg: DictConfig, tones: bool = False) -> EmojiSet:
    """The pictures of `cfg.domain`: the base forms, with `tones` also those of other skin tones.

    Raises ValueError or FileNotFoundError, naming the option.
    """
    domain = cfg.domain
    styles = STYLES if domain.styles is None else list(domain.styles)
    groups = None if domain.groups is None else list(domain.groups)
    limit = domain.limit
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ValueError(f"domain.limit={limit}: must be a whole number, 1 or more, or null")
    if domain.file is not None and not Path(domain.file).is_file():
        raise FileNotFoundError(f"domain.file={domain.file}: no such file")
    try:
        emoji = EmojiSet(domain.file, groups=groups, styles=styles, tones=tones, limit=limit)
    except ValueError as error:
        raise ValueError(f"domain: {error}") from error
    if not len(emoji):
        raise ValueError("domain: holds no picture; widen domain.groups or domain.styles")
    return emoji


@dataclass(frozen=True)
class RealPictures:
    """The pictures of a domain as a judge sees them.

    `pixels` are (N, 64, 64, 3) uint8 on white, in the order of `emoji.pictures`; `gallery` holds
    their features in the same order, with concepts and style families.
    """

    emoji: EmojiSet
    pixels: np.ndarray
    gallery: Gallery

    @classmethod
    def of(cls, emoji: EmojiSet, cache: str | Path | None) -> RealPictures:
        """Draw the pictures of `emoji`; their features are kept in the folder `cache`."""
        white = np.array(BACKGROUNDS["white"])
        pixels = np.stack([composite(emoji.rgba(index), white) for index in range(len(emoji))])
        return cls(emoji, pixels, Gallery(cached_features(pixels, cache), *_labels(emoji)))

    def answerable(self, asks: Sequence[int]) -> list[bool]:
        """Whether the captions of the pictures at `asks` can be answered, see `Gallery`."""
        return answerable(self.emoji, asks)

    def correct(self, features: Tensor, asks: Sequence[int], k: int) -> np.ndarray:
        """(N,) bool: do pictures with these features show what the ones at `asks` show?"""
        return self.gallery.correct(features, *self._asked(asks), k).numpy()

    def copied(self, features: Tensor) -> np.ndarray:
        """(N,) bool: which pictures with these features copy one of the training split."""
        return copies(features, self.gallery.features[self.emoji.indices("train")]).numpy()

    def _asked(self, asks: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(asks, dtype=torch.long)
        return self.gallery.concepts[rows], self.gallery.families[rows]


def answerable(emoji: EmojiSet, asks: Sequence[int]) -> list[bool]:
    """Whether the captions of the pictures at `asks` can be answered, see `Gallery`."""
    concepts, families = _labels(emoji)
    rows = torch.tensor(asks, dtype=torch.long)
    gallery = Gallery(torch.zeros(len(emoji), 1), concepts, families)
    return gallery.answerable(concepts[rows], families[rows]).tolist()


@dataclass(frozen=True)
class AskedPictures:
    """Judges pictures that the captions of the real pictures at `asks` have asked for."""

    real: RealPictures
    asks: Sequence[int]

    def score(self, features: Tensor, seeds: int, nearest: int) -> ConceptScore:
        """Of (N, 1280) features of pictures, `seeds` of each caption in a row."""
        emoji, asks = self.real.emoji, list(self.asks)
        shape, asked = (len(asks), seeds), np.repeat(asks, seeds).tolist()
        own = self.real.gallery.features[torch.tensor(asks)]
        return ConceptScore(
            correct=self.real.correct(features, asked, nearest).reshape(shape),
            copied=self.real.copied(features).reshape(shape),
            real=self.real.correct(own, asks, nearest),
            styles=np.array([emoji.pictures[ask].style for ask in asks]),
        )


def _labels(emoji: EmojiSet) -> tuple[Tensor, Tensor]:
    """Concept and style family of each picture: (N,) int64 both."""
    concepts = torch.tensor([picture.concept for picture in emoji.pictures])
    return concepts, torch.tensor([_FAMILIES.index(FAMILY[each.style]) for each in emoji.pictures])
