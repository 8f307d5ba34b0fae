"""`python scripts/model_card.py`: the sheets of a model card, unpicked."""

from __future__ import annotations

from itertools import islice
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..data.emoji import Split
from ..data.evaluation import evaluation_pictures
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ._domain import read_domain
from ._main import command
from .generate import make_pictures

_SHEETS: dict[Split, str] = {
    "train": "training.png",
    "cells": "held_out_cells.png",
    "concepts": "held_out_concepts.png",
}
_COLUMNS = 8


@command("model_card")
def main(cfg: DictConfig, run: Run) -> None:
    """Make the first pictures of each split, in the order of evaluation, and a sheet of each."""
    emoji = read_domain(cfg)
    chosen = {}
    for split in _SHEETS:
        most = cfg.sheets[split]
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise ValueError(f"sheets.{split}={most}: must be a whole number, 0 or more")
        chosen[split] = evaluation_pictures(emoji, split)[:most]
    captions = [emoji.caption(emoji.pictures[i]) for found in chosen.values() for i in found]
    if not captions:
        raise ValueError("no captions: the domain is empty, or all of sheets are 0")
    wanted: dict[str, Any] = {
        "prompts": captions,
        "prompts_file": None,
        "negative_prompt": None,
        "num_images": 1,
        "grid_max": 0,
    }
    settings = OmegaConf.create({str(key): value for key, value in cfg.items()} | wanted)
    made = iter(make_pictures(settings, run).pictures)
    for split, name in _SHEETS.items():
        if not chosen[split]:
            continue
        cells = [(each.file, each.prompt) for each in islice(made, len(chosen[split]))]
        write_png(run.dir / name, grid(cells, _COLUMNS), {})
        print(f"{len(cells)} pictures: {run.dir / name}")
