"""What an evaluation asks a model, and how its pictures and their truths are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..assets import ROOT, verify
from ..data.emoji import EmojiSet
from ..data.evaluation import Half, caption_number, evaluation_pictures
from ..metrics.quality.clip import Clip
from ..metrics.quality.truths import pipeline_truths
from ..runs.generation import GenerationCost
from ..runs.pictures import read_settings
from ._domain import answerable, read_domain
from ._generation import Picture, draw_batch
from ._model import quiet
from ._prompts import read_prompts

JUDGE = ROOT / "emoji-judge"
_HALVES: dict[str, Half | None] = {"dev": "dev", "test": "test", "all": None}
_CELLS = ("train", "cells", "concepts")


@dataclass(frozen=True)
class Asked:
    """What a model is asked: prompts, the numbers of their noises, and where in the domain."""

    prompts: list[str]
    numbers: list[int]
    emoji: EmojiSet | None = None
    places: Sequence[int] = ()
    unanswerable: int = 0  # captions left out because no real picture answers them


def read_asked(cfg: DictConfig) -> Asked:
    """From `cfg.prompts_file`, else captions of the domain that have an answer.

    Raises ValueError or FileNotFoundError, naming the option.
    """
    for key, allowed in (("split", tuple(_HALVES)), ("cells", _CELLS)):
        if cfg[key] not in allowed:
            raise ValueError(f"{key}={cfg[key]}: must be one of {', '.join(allowed)}")
    if cfg.get("prompts_file") is not None:
        prompts = read_prompts(cfg)[: cfg.n]
        return Asked(prompts, list(range(len(prompts))))
    emoji = read_domain(cfg)
    found = evaluation_pictures(emoji, cfg.cells, _HALVES[cfg.split])
    places = [ask for ask, can in zip(found, answerable(emoji, found), strict=True) if can]
    if not places:
        raise ValueError(
            f"cells={cfg.cells}, split={cfg.split}: no caption of the domain can be asked; its "
            "concepts must be drawn in two style families or more"
        )
    chosen = [emoji.pictures[place] for place in places[: cfg.n]]
    return Asked(
        [emoji.caption(picture) for picture in chosen],
        [caption_number(emoji, picture) for picture in chosen],
        emoji,
        places[: cfg.n],
        len(found) - len(places),
    )


def read_seeds(cfg: DictConfig) -> list[int]:
    """The whole numbers in `cfg.seeds`."""
    given = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else [cfg.seeds]
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in given)
    if not given or not whole or len(set(given)) < len(given):
        raise ValueError(f"seeds={cfg.seeds}: must be different whole numbers, 0 or more")
    return given


def with_judge(cfg: DictConfig, asked: Asked) -> DictConfig:
    """The embedded judge reads captions of the domain, where it is there and no other is given."""
    text = cfg.metrics.get("text") if cfg.metrics else None
    if text is None or text.get("clip") is not None or asked.emoji is None or not JUDGE.is_dir():
        return cfg
    verify(JUDGE)
    given = cfg.copy()
    OmegaConf.update(given, "metrics.text", {"clip": str(JUDGE), "name": "judge"}, merge=True)
    return given


def embedded_judge() -> Clip:
    """The CLIP that is embedded, under the name `judge`."""
    verify(JUDGE)
    return Clip(JUDGE, name="judge")


class Drawing:
    """Makes batches of the pictures, into the folder that they should go to."""

    def __init__(self, pipe: DiffusionPipeline, pictures: Sequence[Picture]) -> None:
        self.pipe, self.pictures = pipe, pictures

    def __call__(self, folder: Path, places: Sequence[int], cost: GenerationCost) -> list[Path]:
        batch = [
            replace(self.pictures[place], file=folder / self.pictures[place].file)
            for place in places
        ]
        missing = {each.file for each in batch if read_settings(each.file) != each.settings}
        draw_batch(self.pipe, batch, missing, cost)
        return [each.file for each in batch]


class Truths:
    """The plain model's own solutions of the pictures' asks."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        pictures: Sequence[Picture],
        settings: Mapping[str, Any],
        steps: int,
        cache: Path | None,
    ) -> None:
        self.pipe, self.pictures, self.steps, self.cache = pipe, pictures, steps, cache
        keys = ("guidance", "height", "width", "negative_prompt")
        self.settings = {key: settings[key] for key in keys}

    def make(self, folder: Path, places: Sequence[int]) -> None:
        self._truths(folder, places)

    def read(self, folder: Path) -> np.ndarray:
        """(N, H, W, 3) uint8 of all asks."""
        return self._truths(folder, range(len(self.pictures)))

    def _truths(self, folder: Path, places: Sequence[int]) -> np.ndarray:
        chosen = [self.pictures[place] for place in places]
        with quiet():
            return pipeline_truths(
                self.pipe,
                [each.prompt for each in chosen],
                [(each.seed, each.index) for each in chosen],
                **self.settings,
                steps=self.steps,
                cache=folder / "truths" if self.cache is None else self.cache,
            )
