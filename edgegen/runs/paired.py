"""Paired error to the truth in one call, for scripts of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from torch import nn

from ..api import Method, apply
from ..data.asks import AskBatches
from ..metrics.quality.backbone import load_backbone, name_of
from ..metrics.quality.bootstrap import Estimate, bootstrap_mean, paired_difference
from ..metrics.quality.paired import paired_errors
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.truths import BATCH, STEPS, pipeline_truths
from ..sampling.generate import default_guidance, default_size, sample


@dataclass(frozen=True)
class PairedErrors:
    """Errors of methods on the same prompts and noise.

    Attributes:
        names: of the columns, such as `quality/ode_rmse` and `quality/ode_efflite0`.
        errors: method → (N, 2) float64, see `metrics.quality.paired.paired_errors`.
        prompts: number of prompts, whose seeds stand in a row.
    """

    names: tuple[str, str]
    errors: Mapping[str, np.ndarray]
    prompts: int

    def mean(self, method: str) -> dict[str, Estimate]:
        """A method's mean errors with their 95 % intervals, by name."""
        rows = self.errors[method]
        return {
            name: bootstrap_mean(rows[:, column], self._clusters(len(rows)))
            for column, name in enumerate(self.names)
        }

    def difference(self, method: str, other: str) -> dict[str, Estimate]:
        """How much larger a method's errors are than another's: paired bootstrap, by name."""
        first, second = self.errors[method], self.errors[other]
        return {
            name: paired_difference(first[:, column], second[:, column], self._clusters(len(first)))
            for column, name in enumerate(self.names)
        }

    def _clusters(self, rows: int) -> np.ndarray:
        return np.repeat(np.arange(self.prompts), rows // self.prompts)


def paired_error(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Mapping[str, Method]],
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
    truth_steps: int = STEPS,
    backbone: nn.Module | str | Path = "efflite0",
    cache: str | Path | None = None,
    batch: int = BATCH,
) -> PairedErrors:
    """How far cheaper methods' pictures are from the base model's own solution.

        methods = {"none": {}, "clock 2": {"clockwork": edgegen.clockwork}}
        errors = edgegen.paired_error(pipe, methods, prompts, steps=8)
        errors.difference("clock 2", "none")["quality/ode_rmse"]

    Args:
        pipe: the base model, with the scheduler that the methods sample by.
        methods: label → what `apply` takes; {} for the plain model.
        prompts: some hundred.
        seeds: noises of each prompt.
        steps: of the methods; `truth_steps` of the truth, by `truths.truth_scheduler`.
        guidance, height, width: default the pipeline's own.
        backbone: of the features, as `load_backbone` takes it.
        cache: folder that keeps the truths, so that each is made once; None keeps none.
        batch: pictures made at once.

    Raises ValueError for no prompts, seeds or methods, or what a method raises.
    """
    if not prompts or not seeds or not methods:
        raise ValueError("one prompt, one seed and one method at least are needed")
    own = default_size(pipe)
    how: dict[str, Any] = {
        "guidance": default_guidance(pipe) if guidance is None else guidance,
        "height": own[0] if height is None else height,
        "width": own[1] if width is None else width,
        "negative_prompt": negative_prompt,
    }
    texts = [prompt for prompt in prompts for _ in seeds]
    noises = [(seed, index) for index in range(len(prompts)) for seed in seeds]
    truth = pipeline_truths(
        pipe,
        texts,
        noises,
        **how,
        steps=truth_steps,
        cache=cache,
        batch=batch,
    )
    network = load_backbone(backbone)
    errors = {}
    for label, chosen in methods.items():
        pictures = []
        with apply(pipe, chosen):
            batches = AskBatches(len(texts), batch)
            for number in range(len(batches)):
                places = batches[number]
                part = [texts[place] for place in places], [noises[place] for place in places]
                made = sample(pipe, *part, steps=steps, **how)
                pictures += [np.asarray(picture.convert("RGB")) for picture in made]
        found = paired_errors(as_floats(pictures[: len(texts)]), as_floats(truth), network)
        errors[label] = found.numpy()
    return PairedErrors(
        ("quality/ode_rmse", f"quality/ode_{name_of(network)}"), errors, len(prompts)
    )
