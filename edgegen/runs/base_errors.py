"""Errors of the pictures of several models to what one of them, their base, would have drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..api import load
from ..media.pictures import read_picture
from ..metrics.quality.bootstrap import bootstrap_mean, paired_difference
from ..metrics.quality.efflite0 import EffLite0
from ..metrics.quality.paired import paired_errors
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.truths import pipeline_truths
from ..pipelines.layout import channels_last
from .cell_samples import columns, there
from .finished import Row
from .pictures import read_settings


def add_errors_to_base(
    rows: Sequence[Row],
    cells: Path,
    stage: str,
    base: str,
    *,
    guidance: float,
    seed: int = 0,
    steps: int = 100,
    against: Callable[[str], str | None] = lambda _: None,
) -> list[Row]:
    """`quality/base_rmse` and `quality/base_efflite0`: errors to one model's own solution.

    For rows of different models, each of which `evaluate` compares with its own solution.

    Args:
        stage: whose rows are judged, by their axis `row`.
        base: the row of the model whose truth is taken, at `guidance` with `steps` steps.
        seed: whose pictures of each row are judged: one of each prompt.
        against: by a row's name, the row that it is held against, as `quality/base_rmse_change`:
            the mean of its error less that one's, with its paired interval.
    """
    judged = [row for row in rows if row["stage"] == stage and there(cells, row)]
    found = next((row for row in judged if row["row"] == base), None)
    if found is None:
        return list(rows)
    made, truth, prompts = _truth(cells / found["cell"], guidance, seed, steps)
    backbone = EffLite0()
    done: dict[str, Row] = {}
    by_pixels: dict[str, np.ndarray] = {}
    for row in judged:
        files, asked = _pictures(cells / row["cell"], seed)
        if [_noise(each) for each in asked] != [_noise(each) for each in made]:
            raise ValueError(f"cell {row['cell']}: made with other prompts or noise than {base}'s")
        errors = paired_errors(as_floats([read_picture(file) for file in files]), truth, backbone)
        new: Row = {}
        for name, column in zip(("rmse", "efflite0"), errors.T.cpu().numpy(), strict=True):
            new |= columns(f"quality/base_{name}", bootstrap_mean(column, prompts))
        done[row["row"]] = new
        by_pixels[row["row"]] = errors[:, 0].cpu().numpy()
    for name, new in done.items():
        other = against(name)
        if other in by_pixels:
            change = paired_difference(by_pixels[name], by_pixels[other], prompts)
            new |= columns("quality/base_rmse_change", change)
    here = {id(row) for row in judged}
    return [dict(row) | (done[row["row"]] if id(row) in here else {}) for row in rows]


def _truth(
    folder: Path, guidance: float, seed: int, steps: int
) -> tuple[list[dict[str, Any]], torch.Tensor, np.ndarray]:
    """What was asked for the pictures of a cell, the truths of its model, and the prompts."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    _, asked = _pictures(folder, seed)
    pipe = load(config["model"]["source"])
    pipe.set_progress_bar_config(disable=True)
    channels_last(pipe.unet)
    truth = pipeline_truths(
        pipe,
        [each["prompt"] for each in asked],
        [(each["seed"], each["index"]) for each in asked],
        guidance=guidance,
        **{key: asked[0][key] for key in ("height", "width", "negative_prompt")},
        steps=steps,
        cache=config["cache"],
    )
    return asked, as_floats(truth), np.array([each["prompt"] for each in asked])


def _pictures(folder: Path, seed: int) -> tuple[list[Path], list[dict[str, Any]]]:
    read = {file: read_settings(file) for file in sorted((folder / "images").glob("*.png"))}
    if None in read.values():
        raise ValueError(f"{folder / 'images'}: a picture does not say how it was made")
    found = {file: each for file, each in read.items() if each and each["seed"] == seed}
    if not found:
        raise ValueError(f"{folder / 'images'}: no pictures of seed {seed}")
    return list(found), list(found.values())


def _noise(asked: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(asked[key] for key in ("prompt", "seed", "index"))
