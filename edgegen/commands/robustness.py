"""`python scripts/robustness.py`: the premise of feature reuse, and where its cost shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn
from tqdm import tqdm

from ..data.evaluation import caption_number, evaluation_pictures
from ..metrics.quality.backbone import features_of
from ..metrics.quality.bootstrap import bootstrap_mean
from ..metrics.quality.efflite0 import EffLite0
from ..metrics.quality.paired import feature_errors, pixel_errors
from ..metrics.quality.pictures import as_floats
from ..reuse import Stage
from ..reuse.levels import LevelMoves, LevelNoise, visit_levels
from ..runs.heatmap import HeatMap, heatmap_figure
from ..runs.pareto import write_figure
from ..runs.record import Run
from ..sampling.generate import noise_generator, sample
from ._domain import read_domain
from ._generation import load_pipeline, model_files, report_cuts, sampling_settings
from ._main import command
from ._model import quiet
from ._numbers import flag, whole_number
from ._operating_points import (
    ERRORS,
    OperatingPoint,
    operating_points,
    write_csv,
)
from ._prompts import read_prompts
from ._sampling import guidance_scale

Ask = tuple[str, int]  # a prompt and the number that its noise is drawn by


@command("robustness", free_text=("prompts_file",))
def main(cfg: DictConfig, run: Run) -> None:
    """Disturb and watch features, then try identity reuse; tables, and one sheet of heat maps."""
    for key in ("steps", "disturbed", "n", "batch_size", "truth_steps", "resamples"):
        whole_number(cfg, key, 1)
    whole_number(cfg, "seed", 0)
    sigma = cfg.sigma
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma}: must be a number above 0")
    tried = [(s, c) for s in _list(cfg, "steps", 1) for c in _list(cfg, "clocks", 2)]
    asks = _asks(cfg)
    pipe = load_pipeline(cfg, cfg.steps)
    for steps, _ in tried:
        try:
            pipe.scheduler.set_timesteps(steps)
        except ValueError as error:
            raise ValueError(f"points.steps: {steps}: {error}") from error
    cut = Stage(cfg.stage, flag(cfg, "before_upsampler"))
    cut.place(pipe.unet)
    settings = sampling_settings(cfg, pipe, cfg.steps, guidance_scale(cfg, pipe))
    run.info(device=str(pipe.device), seeds=[cfg.seed], settings=settings)
    for file in [*model_files(pipe), EffLite0.weights_file()]:
        run.used_file(file)
    with quiet():
        report_cuts(pipe, [prompt for prompt, _ in asks], run)
    judge = EffLite0().to(pipe.device)

    maps = _levels(cfg, run, pipe, judge, asks[: cfg.disturbed], settings)
    points = operating_points(cfg, run, pipe, judge, asks, settings, cut, tried)
    maps += [_cost_map(points, error) for error in ERRORS]
    write_figure(run.dir / "robustness.png", heatmap_figure(maps))
    print(_table(points))


def _levels(
    cfg: DictConfig,
    run: Run,
    pipe: DiffusionPipeline,
    judge: nn.Module,
    asks: Sequence[Ask],
    settings: Mapping[str, Any],
) -> list[HeatMap]:
    """Noise on each level's features at each step, and how far they move without any."""
    batches = [asks[i : i + cfg.batch_size] for i in range(0, len(asks), cfg.batch_size)]

    def draw(batch: Sequence[Ask]) -> Tensor:
        with quiet():
            images = sample(
                pipe,
                [prompt for prompt, _ in batch],
                [(cfg.seed, index) for _, index in batch],
                **{key: settings[key] for key in ("steps", "guidance", "height", "width")},
            )
        return as_floats(np.asarray(image.convert("RGB")) for image in images)

    moves = LevelMoves()
    with visit_levels(pipe, moves) as levels:
        plain = torch.cat([draw(batch) for batch in tqdm(batches, desc="watching", unit="batch")])
    moved = moves.mean()
    evaluations = len(moved[0])
    plain_features = features_of(judge, plain)

    found = np.full((len(ERRORS), levels, evaluations), np.nan)
    rows: list[dict[str, Any]] = []
    places = [(level, step) for level in range(levels) for step in range(evaluations)]
    for level, step in tqdm(places, desc="disturbing", unit="place"):
        pictures = []
        for batch in batches:
            generators = [noise_generator(cfg.seed + 1, index) for _, index in batch]
            noise = LevelNoise(level, step, cfg.sigma, generators)
            with visit_levels(pipe, noise):
                pictures.append(draw(batch))
        noisy = torch.cat(pictures)
        errors = (
            pixel_errors(noisy, plain),
            feature_errors(features_of(judge, noisy), plain_features),
        )
        row: dict[str, Any] = {"level": level, "step": step + 1}
        for number, (name, each) in enumerate(zip(ERRORS, errors, strict=True)):
            estimate = bootstrap_mean(each.cpu().numpy(), resamples=cfg.resamples, seed=cfg.seed)
            found[number, level, step] = estimate.value
            row |= {name: estimate.value, f"{name}_lo": estimate.low, f"{name}_hi": estimate.high}
            metric = f"robustness/{name}_level_{level}_step_{step + 1}"
            run.log({metric: estimate.value, f"{metric}_lo": estimate.low})
            run.log({f"{metric}_hi": estimate.high, f"{metric}_n": estimate.n})
        row["move"] = moved[level][step] if step else None
        if step:
            run.log({f"robustness/move_level_{level}_step_{step + 1}": moved[level][step]})
        rows.append(row)
    write_csv(run.dir / "levels.csv", rows)
    names = [f"level {level}" for level in range(levels)]
    steps = [str(step + 1) for step in range(evaluations)]
    titles = [f"{name} of noise {cfg.sigma:g}" for name in ERRORS] + ["move of features"]
    tables = [*found.tolist(), moved]
    return [
        HeatMap(title, table, names, steps, "", "step")
        for title, table in zip(titles, tables, strict=True)
    ]


def _cost_map(points: Sequence[OperatingPoint], error: str) -> HeatMap:
    return HeatMap.of(
        f"{error}: cost of reuse",
        {(point.steps, point.clock): point.cost[error].value for point in points},
        "steps",
        "clock",
        [(point.steps, point.clock) for point in points if point.measurable(error)],
    )


def _asks(cfg: DictConfig) -> list[Ask]:
    if cfg.prompts_file is not None:
        prompts = read_prompts(cfg)
        return [(prompt, index) for index, prompt in enumerate(prompts)][: cfg.n]
    emoji = read_domain(cfg)
    found = evaluation_pictures(emoji, "train", "dev")
    if not found:
        raise ValueError("domain: holds no caption of the dev half; widen domain.groups")
    pictures = [emoji.pictures[index] for index in found[: cfg.n]]
    return [(emoji.caption(picture), caption_number(emoji, picture)) for picture in pictures]


def _list(cfg: DictConfig, key: str, least: int) -> list[int]:
    given = cfg.points[key]
    found = list(given) if isinstance(given, ListConfig) else [given]
    whole = all(isinstance(x, int) and not isinstance(x, bool) and x >= least for x in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ValueError(
            f"points.{key}={given}: must be different whole numbers, {least} or more each"
        )
    return found


def _table(points: Sequence[OperatingPoint]) -> str:
    lines = [f"{'steps':>5} {'clock':>5}" + "".join(f"  {name:<36}" for name in ERRORS)]
    for point in points:
        line = f"{point.steps:>5} {point.clock:>5}"
        for name in ERRORS:
            cost = point.cost[name]
            mark = "measurable" if point.measurable(name) else ""
            cell = f"{cost.value:+.4f} [{cost.low:+.4f}, {cost.high:+.4f}] {mark}"
            line += f"  {cell:<36}"
        lines.append(line.rstrip())
    return "\n".join(["cost of identity reuse in paired error to the truth", *lines])
