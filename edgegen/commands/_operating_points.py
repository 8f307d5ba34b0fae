"""Where identity reuse costs something: paired error to the truth over steps and clock."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from torch import nn

from ..api import apply
from ..media.pictures import read_picture
from ..metrics.quality.backbone import features_of
from ..metrics.quality.bootstrap import Estimate, bootstrap_mean, paired_difference
from ..metrics.quality.paired import feature_errors, pixel_errors
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.truths import pipeline_truths
from ..reuse import Stage, clockwork
from ..runs.atomic import write_atomic
from ..runs.record import Run
from ._generation import draw, pictures_of
from ._model import quiet

ERRORS = ("rmse", "efflite0")


@dataclass(frozen=True)
class OperatingPoint:
    """Identity reuse at one number of steps and one clock.

    Attributes:
        base, reused: error name → mean paired error to the truth without and with reuse.
        cost: error name → mean of reused − base over the same prompts and noise.
    """

    steps: int
    clock: int
    base: dict[str, Estimate]
    reused: dict[str, Estimate]
    cost: dict[str, Estimate]

    def ratio(self, error: str) -> float:
        """The cost over the width of its 95 % interval."""
        cost = self.cost[error]
        width = cost.high - cost.low
        return cost.value / width if width > 0 else 0.0

    def measurable(self, error: str) -> bool:
        """Whether the cost is more than twice the width of its interval."""
        return self.ratio(error) > 2


def operating_points(
    cfg: DictConfig,
    run: Run,
    pipe: DiffusionPipeline,
    judge: nn.Module,
    asks: Sequence[tuple[str, int]],
    settings: Mapping[str, Any],
    cut: Stage,
    tried: Sequence[tuple[int, int]],
) -> list[OperatingPoint]:
    """Identity reuse at all of `tried`, (steps, clock) each; `points.csv` and metrics of the run.

    Args:
        asks: prompts with the numbers that their noise is drawn by.
        settings: as of `_generation.sampling_settings`.
    """
    size = {key: settings[key] for key in ("guidance", "height", "width")}
    with quiet():
        solved = pipeline_truths(
            pipe,
            [prompt for prompt, _ in asks],
            [(cfg.seed, index) for _, index in asks],
            **size,
            steps=cfg.truth_steps,
            cache=cfg.cache,
            batch=cfg.batch_size,
        )
    truth = as_floats(solved)
    truth_features = features_of(judge, truth)

    def errors(steps: int, clock: int) -> dict[str, np.ndarray]:
        own = {**settings, "steps": steps}
        methods: dict[str, Any] = {}
        if clock > 1:
            how = {"clock": clock, "stage": cut.stage, "before_upsampler": cut.before_upsampler}
            methods["clockwork"] = partial(clockwork, **how)  # type: ignore[arg-type]
            own["methods"] = {"clockwork": how}
        name = f"steps-{steps}-clock-{clock}"
        pictures = pictures_of(run.dir / "images" / name, asks, [cfg.seed], own)
        with apply(pipe, methods):
            draw(pipe, pictures, cfg.batch_size, description=name)
        drawn = as_floats(read_picture(each.file) for each in pictures)
        found = (
            pixel_errors(drawn, truth),
            feature_errors(features_of(judge, drawn), truth_features),
        )
        return {error: each.cpu().numpy() for error, each in zip(ERRORS, found, strict=True)}

    base: dict[int, dict[str, np.ndarray]] = {}
    points = []
    for steps, clock in tried:
        if steps not in base:
            base[steps] = errors(steps, 1)
        points.append(_point(cfg, steps, clock, base[steps], errors(steps, clock)))
    rows = []
    for point in points:
        run.log(_metrics(point))
        for error in ERRORS:
            cost = point.cost[error]
            rows.append(
                {
                    "steps": point.steps,
                    "clock": point.clock,
                    "error": error,
                    "base": point.base[error].value,
                    "reused": point.reused[error].value,
                    "cost": cost.value,
                    "cost_lo": cost.low,
                    "cost_hi": cost.high,
                    "n": cost.n,
                    "ratio": point.ratio(error),
                    "measurable": int(point.measurable(error)),
                }
            )
    write_csv(run.dir / "points.csv", rows)
    for error in ERRORS:
        count = sum(point.measurable(error) for point in points)
        run.log({f"robustness/points_measurable_{error}": count})
    run.log({"robustness/points": len(points)})
    return points


def _point(
    cfg: DictConfig,
    steps: int,
    clock: int,
    base: Mapping[str, np.ndarray],
    reused: Mapping[str, np.ndarray],
) -> OperatingPoint:
    how = {"resamples": cfg.resamples, "seed": cfg.seed}
    return OperatingPoint(
        steps,
        clock,
        {error: bootstrap_mean(base[error], **how) for error in ERRORS},
        {error: bootstrap_mean(reused[error], **how) for error in ERRORS},
        {error: paired_difference(reused[error], base[error], **how) for error in ERRORS},
    )


def _metrics(point: OperatingPoint) -> dict[str, float]:
    found: dict[str, float] = {}
    place = f"steps_{point.steps}_clock"
    for error in ERRORS:
        for name, estimate in (
            (f"quality/ode_{error}_{place}_1", point.base[error]),
            (f"quality/ode_{error}_{place}_{point.clock}", point.reused[error]),
            (f"robustness/cost_{error}_{place}_{point.clock}", point.cost[error]),
        ):
            found |= {
                name: estimate.value,
                f"{name}_lo": estimate.low,
                f"{name}_hi": estimate.high,
                f"{name}_sd": estimate.sd,
                f"{name}_n": estimate.n,
            }
        found[f"robustness/ratio_{error}_{place}_{point.clock}"] = point.ratio(error)
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same columns, at least one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
