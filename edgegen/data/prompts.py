"""Prompts with noise: all that training on a teacher's own trajectories needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .emoji import STYLES, EmojiSet
from .evaluation import half_of
from .modules import StreamDataModule
from .stream import Stream, sample_rng
from .views import random_caption


class PromptData(StreamDataModule):
    """{`row`, `seed`, `prompt`}: a prompt and the seed of its noise, from captions or a file.

    Captions are those of the emoji domain's training split without the half that evaluation scores
    once (`evaluation.half_of`), worded anew each time.

    Args:
        prompts_file: a text file (UTF-8), a prompt a line, instead of captions.
        distinct: how many different samples there are; each is a function of the seed and its
            `row` (from 0), so that what was computed for it can be kept. None never repeats one,
            and `row` is -1.
        emoji, groups, styles, limit: the domain, see `EmojiSet`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompts in it, or no captions in the domain; `distinct` below 1.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        prompts_file: str | None = None,
        distinct: int | None = None,
        emoji: str | None = None,
        groups: Sequence[str] | None = None,
        styles: Sequence[str] = STYLES,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        if distinct is not None and distinct < max(1, batch_size):
            raise ValueError(f"distinct={distinct}: must be the batch size of {batch_size} or more")
        self.distinct = distinct
        self._lines: list[str] | None = None
        if prompts_file is not None:
            self._lines = _read(prompts_file)
            count = len(self._lines)
            self._source = hashlib.sha256("\n".join(self._lines).encode()).hexdigest()
        else:
            self._emoji = EmojiSet(emoji, groups=groups, styles=styles, tones=False, limit=limit)
            self._captioned = [
                index
                for index in self._emoji.indices("train")
                if half_of(self._emoji, self._emoji.pictures[index]) == "dev"
            ]
            count = len(self._captioned)
            if not count:
                raise ValueError("the domain holds no captions to train on: widen groups or styles")
            pictures = [self._emoji.pictures[index] for index in self._captioned]
            captions = [self._emoji.caption(picture) for picture in pictures]
            self._source = json.dumps([self._emoji.sha256, captions])
        self._count = count
        if distinct is None:
            self._stream: Dataset[Any] = Stream(list(range(count)), self.fresh, seed)
        else:
            self._stream = Stream(list(range(distinct)), self.kept, seed)

    @property
    def digest(self) -> str:
        """Hash of what the `distinct` samples are."""
        text = json.dumps([self._source, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def setup(self, stage: str | None = None) -> None:
        self.train_set = self._stream

    def fresh(self, position: int, rng: np.random.Generator) -> dict[str, Any]:
        """The prompt at `position` with noise that was never there before."""
        return {"row": -1, "seed": _noise_seed(rng), "prompt": self._prompt(position, rng)}

    def kept(self, row: int, _: np.random.Generator) -> dict[str, Any]:
        """Sample `row` of the distinct ones, the same at every pass."""
        rng = sample_rng(self.seed + 1, row)
        prompt = self._prompt(int(rng.integers(self._count)), rng)
        return {"row": row, "seed": _noise_seed(rng), "prompt": prompt}

    def _prompt(self, position: int, rng: np.random.Generator) -> str:
        if self._lines is not None:
            return self._lines[position]
        return random_caption(self._emoji, self._captioned[position], rng)


def _noise_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))  # PyTorch's CPU generator takes in no more bits than these


def _read(name: str) -> list[str]:
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"prompts_file={name}: no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts_file={name}: must be a text file in UTF-8") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts_file={name}: holds no prompt; write one a line")
    return prompts
