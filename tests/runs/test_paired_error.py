"""The one call against its pieces."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import edgegen
from edgegen.metrics.quality.efflite0 import EffLite0, picture_features
from edgegen.sampling.generate import sample


def test_errors_are_those_to_the_models_own_solution(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    pipe = edgegen.load(tiny_pipeline_folder, scheduler="DPMSolverMultistep")
    pipe.set_progress_bar_config(disable=True)
    prompts, seeds = ["a fox", "an ox", "a cat"], [0, 4]
    methods = {"none": {}, "reuse": {"clockwork": partial(edgegen.clockwork, clock=2)}}
    options = {"steps": 4, "guidance": 3.0, "truth_steps": 12, "cache": tmp_path, "batch": 4}
    found = edgegen.paired_error(pipe, methods, prompts, seeds, **options)

    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    how = {"guidance": 3.0, "height": size, "width": size}
    texts = [prompt for prompt in prompts for _ in seeds]
    noises = [(seed, index) for index in range(3) for seed in seeds]
    plain = pipe.scheduler
    pipe.scheduler = type(plain).from_config(plain.config, use_karras_sigmas=True)
    truth = np.stack([np.asarray(p) for p in sample(pipe, texts, noises, steps=12, **how)])
    pipe.scheduler = plain
    for label, clock in (("none", 1), ("reuse", 2)):
        with edgegen.clockwork(pipe, clock=clock):
            made = np.stack([np.asarray(p) for p in sample(pipe, texts, noises, steps=4, **how)])
        pixels = np.sqrt(((made / 255.0 - truth / 255.0) ** 2).mean((1, 2, 3)))
        # Batches of another size: the last bit of a few pixels may differ.
        assert found.errors[label][:, 0] == pytest.approx(pixels, abs=2e-3)
        both = [picture_features(EffLite0(), side).double() for side in (made, truth)]
        features = (both[0] - both[1]).square().mean(1).sqrt().numpy()
        assert found.errors[label][:, 1] == pytest.approx(features, rel=0.05)

    rmse = found.mean("reuse")["quality/ode_rmse"]
    assert (rmse.value, rmse.n) == (pytest.approx(found.errors["reuse"][:, 0].mean()), 6)
    assert rmse.low <= rmse.value <= rmse.high
    more = found.difference("reuse", "none")["quality/ode_efflite0"]
    expected = (found.errors["reuse"] - found.errors["none"])[:, 1].mean()
    assert more.value == pytest.approx(expected)
    again = edgegen.paired_error(pipe, methods, prompts, seeds, **options)
    assert all(np.array_equal(again.errors[label], found.errors[label]) for label in methods)


def test_nothing_to_compare_is_refused(tiny_pipeline_folder: Path) -> None:
    pipe = edgegen.load(tiny_pipeline_folder)
    for prompts, methods in (([], {"none": {}}), (["a"], {})):
        with pytest.raises(ValueError, match="at least are needed"):
            edgegen.paired_error(pipe, methods, prompts, steps=2)
