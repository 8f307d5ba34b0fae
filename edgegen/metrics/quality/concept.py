"""Concept accuracy: does a picture show what was asked, as its nearest real pictures tell?

A picture is right where one of the `k` nearest real pictures, by cosine of their features, shows
the asked concept. The gallery of real pictures is searched without those that draw the asked
concept in the asked style family: a model that copies its training picture finds that picture.

Concepts and style families are whole numbers here; what they stand for is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 512  # queries compared at once


@dataclass(frozen=True)
class Gallery:
    """Real pictures that others are compared with.

    Args:
        features: (G, D).
        concepts: (G,) int64, what each shows.
        families: (G,) int64, the style family it is drawn in. Two pictures of one concept and
            family are siblings, and are always hidden together.
    """

    features: Tensor
    concepts: Tensor
    families: Tensor

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.concepts) == len(self.families):
            counts = len(self.features), len(self.concepts), len(self.families)
            raise ValueError(
                "features, concepts and families must be of one length, got {}, {}, {}".format(
                    *counts
                )
            )

    def answerable(self, concepts: Tensor, families: Tensor) -> Tensor:
        """Whether an ask can be answered: (N,) bool.

        It cannot where every picture of the asked concept is hidden for it: such an ask would count
        as wrong whatever is drawn.
        """
        return (self._shows(concepts) & ~self._hidden(concepts, families)).any(1)

    def nearest(self, features: Tensor, concepts: Tensor, families: Tensor, k: int = 5) -> Tensor:
        """The `k` nearest pictures that are not hidden: (N, k) rows of the gallery, nearest first.

        Args:
            features: (N, D), of the pictures made for the asks.
            concepts, families: (N,) int64, what was asked.

        Of equally near ones the first in the gallery comes first. Where fewer than `k` are left,
        the rest is -1.
        """
        found = []
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            hidden = self._hidden(concepts[rows], families[rows])
            similarity = cosine(features[rows], self.features).masked_fill(hidden, -torch.inf)
            order = similarity.sort(dim=1, descending=True, stable=True)
            found.append(order.indices[:, :k].masked_fill(order.values[:, :k].isneginf(), -1))
        nearest = torch.cat(found)
        return functional.pad(nearest, (0, k - nearest.shape[1]), value=-1)

    def correct(self, features: Tensor, concepts: Tensor, families: Tensor, k: int = 5) -> Tensor:
        """Whether one of the `k` nearest shows the asked concept: (N,) bool; see `nearest`."""
        nearest = self.nearest(features, concepts, families, k)
        return ((self.concepts[nearest] == concepts[:, None]) & (nearest >= 0)).any(1)

    def _shows(self, concepts: Tensor) -> Tensor:
        return self.concepts[None] == concepts[:, None]

    def _hidden(self, concepts: Tensor, families: Tensor) -> Tensor:
        return self._shows(concepts) & (self.families[None] == families[:, None])


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """(N, D) and (M, D) to their (N, M) cosines in float64, so that near ties are no matter of
    rounding."""
    return functional.normalize(first.double()) @ functional.normalize(second.double()).T


def copies(pictures: Tensor, training: Tensor) -> Tensor:
    """Whether a picture copies a training picture: (N,) bool.

    It does where it is nearer, by cosine, to some training picture than that one's nearest other
    training picture is.

    Args:
        pictures: (N, D) features.
        training: (T, D) features of all training pictures.

    Raises ValueError where there are fewer than two training pictures.
    """
    if len(training) < 2:
        raise ValueError(f"copies are told by two training pictures or more, got {len(training)}")
    nearest_other = torch.cat(
        [
            cosine(training[start : start + _ROWS], training)
            .diagonal_scatter(torch.full((min(_ROWS, len(training) - start),), -2.0), start)
            .amax(1)
            for start in range(0, len(training), _ROWS)
        ]
    )
    rows = [
        (cosine(pictures[start : start + _ROWS], training) > nearest_other).any(1)
        for start in range(0, len(pictures), _ROWS)
    ]
    return torch.cat(rows)
