"""What an evaluation judges, and how its scores come together; the scores are in `scores`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from .bootstrap import bootstrap_mean
from .concept_score import ConceptScore
from .kept import CHUNK, KeptFeatures
from .pictures import as_floats

Pictures = Sequence[np.ndarray] | np.ndarray
"""(H, W, 3) uint8 each."""

_BATCH = 32  # pictures in memory at once


class RealJudge(Protocol):
    """Real pictures that tell what others show, such as those of the emoji."""

    def score(self, features: Tensor, seeds: int, nearest: int) -> ConceptScore:
        """Of (N, 1280) features of pictures, `seeds` of each caption in a row."""


@dataclass(frozen=True)
class Material:
    """Pictures to judge, and what they can be judged by.

    Args:
        pictures: N of them.
        prompts: what each was asked for.
        captions: where the pictures are a clip: what the source shows, and what the clip should.
        clusters: (N,) which prompt each belongs to, where there are several of a prompt; the
            intervals are then of prompts drawn whole.
        pairs: the picture that each should equal.
        reference: real pictures, any number.
        judge: of concepts.
        missing: kind (`prompts`, `captions`, `pairs`, `reference`, `judge`) → why there is none.
        pair_name: the paired errors are `quality/{pair_name}_…`: `ode` against the base model's
            own solution, `paired` against pictures of the user's.
        own_cache, cache: folders where features of the pictures, and those of the others, are kept.
        chunk: of the pictures' features, see `KeptFeatures`.
        independent: false where the pictures are no sample of anything, such as the frames of one
            video: then there are no intervals.
    """

    pictures: Pictures
    prompts: list[str] | None = None
    captions: tuple[str, str] | None = None
    clusters: np.ndarray | None = None
    pairs: Pictures | None = None
    reference: Pictures | None = None
    judge: RealJudge | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    pair_name: str = "paired"
    own_cache: Path | None = None
    cache: Path | None = None
    chunk: int = CHUNK
    independent: bool = True

    def features(self, backbone: nn.Module, of: str = "pictures") -> Tensor:
        """(N, D) float32, kept: of `pictures`, `pairs` or `reference`."""
        own = of == "pictures"
        kept = KeptFeatures(
            backbone, self.own_cache if own else self.cache, self.chunk if own else CHUNK
        )
        return kept(getattr(self, of), f"{of}: {kept.name}")


@dataclass
class Scores:
    """`metrics`: name → number; `rows`: name → (N,) number of each picture; `notes`: name → why it
    could not be computed."""

    metrics: dict[str, float] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: np.ndarray, material: Material) -> None:
        """The mean of (N,) values with its interval, and the values themselves.

        There is no interval of values that are not independent, nor of one group of them.
        """
        self.rows[name] = values
        groups = len(values) if material.clusters is None else len(set(material.clusters))
        if not material.independent or groups < 2:
            self.metrics |= {name: float(values.mean()), f"{name}_n": len(values)}
            return
        estimate = bootstrap_mean(values, material.clusters)
        self.metrics |= {
            name: estimate.value,
            f"{name}_lo": estimate.low,
            f"{name}_hi": estimate.high,
            f"{name}_sd": estimate.sd,
            f"{name}_n": estimate.n,
        }


class Score(Protocol):
    """A kind of judgement: what it needs of a `Material`, and the names that it promises."""

    needs: tuple[str, ...]
    backbones: tuple[nn.Module, ...]

    def names(self, material: Material) -> tuple[str, ...]:
        """The metrics that it gives, but for their `_lo`, `_n` and so on."""

    def __call__(self, material: Material) -> Scores:
        """Raises ValueError where these pictures cannot be judged so."""


def judge(scores: Mapping[str, Score], material: Material) -> Scores:
    """All scores of a material; what cannot be computed is in `notes`, with the reason."""
    everything = Scores()
    for score in scores.values():
        reasons = [material.missing[need] for need in score.needs if need in material.missing]
        found = Scores()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if not reasons:
                    found = score(material)
            except ValueError as error:
                reasons = [" ".join(str(error).split())]
        said = [str(each.message) for each in caught if "left out: " in str(each.message)]
        reasons += [line.partition("left out: ")[2] for line in said]
        for each in caught:
            if str(each.message) not in said:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        everything.metrics |= found.metrics
        everything.rows |= found.rows
        everything.notes |= found.notes
        for name in score.names(material):
            if name not in everything.metrics and name not in everything.notes:
                everything.notes[name] = (
                    "; ".join(dict.fromkeys(reasons)) or "not given by the metric"
                )
    return everything


def picture_batches(*sets: Pictures) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Places and, of each set, (B, 3, H, W) floats in [0, 1]; B pictures in a row of one size."""
    for start in range(0, len(sets[0]), _BATCH):
        places = range(start, min(start + _BATCH, len(sets[0])))
        read = {place: [pictures[place] for pictures in sets] for place in places}
        for _, alike in groupby(places, lambda place: [side.shape for side in read[place]]):  # noqa: B023
            group = list(alike)
            yield (
                group,
                [as_floats(side) for side in zip(*(read[place] for place in group), strict=True)],
            )
