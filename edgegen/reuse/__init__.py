"""Reuse of features across denoising steps: where to cut, when to run in full, how to predict.

`clockwork`, `deepcache` and `faster_diffusion` are settings of one mechanism, `reuse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from .adaptor import ResNetAdaptor, load_adaptor, make_adaptor, save_adaptor
from .clock import Drift, Every, Full, Reused, Spread, parse_clock
from .cut import Branch, Cut, Encoder, Stage
from .exporting import ExportedPasses, export_passes
from .method import Reuse, reuse
from .observation import Observation, observe
from .predictor import Extrapolation

__all__ = [
    "Branch",
    "Cut",
    "Drift",
    "Encoder",
    "Every",
    "ExportedPasses",
    "Extrapolation",
    "Full",
    "Observation",
    "ResNetAdaptor",
    "Reuse",
    "Reused",
    "Spread",
    "Stage",
    "clockwork",
    "deepcache",
    "export_passes",
    "faster_diffusion",
    "load_adaptor",
    "make_adaptor",
    "observe",
    "parse_clock",
    "reuse",
    "save_adaptor",
]

# Full passes of Faster Diffusion in a run of 50 steps, as its authors' code has them.
FASTER_DIFFUSION_STEPS = (1, 2, 3, 4, 6, 11, 16, 26, 36)


def clockwork(
    target: Any,
    clock: Any = 2,
    predictor: Any = "identity",
    stage: int = 1,
    before_upsampler: bool = True,
) -> AbstractContextManager[Reuse]:
    """Clockwork Diffusion (arXiv 2312.08128): low-resolution features are predicted from the last.

        with clockwork(pipe, clock=2):
            pipe("a fox", num_inference_steps=8)

    Args:
        target: a diffusers pipeline; see `reuse`, also for what is raised.
        clock: N for one full pass every N steps; `{full: [1, 3]}`, `{reuse: [5, 6]}` (counted
            from 1), `{early: N}`, `{late: N}`, `{ends: N}`, `{span: N}`, `{drift: threshold}`.
        predictor: `identity`, `linear`, `quadratic`, `learned` (the embedded model's adaptor), a
            trained adaptor's path, or `resnet`, `light` (untrained).
        stage: the highest resolutions that always run, from 1.
        before_upsampler: see `Stage`.
    """
    return reuse(target, Stage(stage, before_upsampler), clock, predictor)


def deepcache(
    target: Any, interval: int = 3, branch: int = 0, clock: Any = None, predictor: Any = "identity"
) -> AbstractContextManager[Reuse]:
    """DeepCache (arXiv 2312.00858): only the outermost skip connections are made anew.

    Args:
        target: a diffusers pipeline; see `reuse`, also for what is raised.
        interval: one full pass every so many steps.
        branch: the innermost skip connection that is made anew, from 0. The authors' package counts
            three a level (`cache_branch_id`): the same number in models with two layers a level,
            as Stable Diffusion has; with one layer, as in the embedded ones, its 1 and 2 are 1
            here, its 3 is 2, its 4 and 5 are 3.
        clock: as in `clockwork`, in place of the interval.
        predictor: `identity`, `linear` or `quadratic`; learned ones need a cut of `clockwork`.
    """
    return reuse(target, Branch(branch), interval if clock is None else clock, predictor)


def faster_diffusion(target: Any, clock: Any = None) -> AbstractContextManager[Reuse]:
    """Faster Diffusion (arXiv 2312.09608): the decoder runs on the encoder's old features.

    Args:
        target: a diffusers pipeline; see `reuse`, also for what is raised.
        clock: as in `clockwork`; by default full passes as published for 50 steps.
    """
    steps: Mapping[str, Any] = {"full": list(FASTER_DIFFUSION_STEPS)}
    return reuse(target, Encoder(), steps if clock is None else clock)
