"""`python scripts/evaluate.py model=emoji steps=8`: scores of pictures, made or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from diffusers import DiffusionPipeline
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ..api import apply
from ..data.asks import AskBatches
from ..media.pictures import PictureFiles
from ..metrics.quality.backbone import name_of
from ..metrics.quality.concept_score import ACCURACY, COPIES
from ..metrics.quality.evaluation import Material, Score, Scores, judge
from ..metrics.quality.kept import backbone_digest
from ..runs.generation import cost_table, read_cost
from ..runs.looks import log_look
from ..runs.record import Run
from ..training.evaluation import EvaluationModule, run_test
from ._asked import Asked, Drawing, Truths, read_asked, read_seeds, with_judge
from ._domain import AskedPictures, RealPictures
from ._generation import (
    Picture,
    load_pipeline,
    model_files,
    pictures_of,
    remove_surplus,
    report_cuts,
    sampling_settings,
)
from ._given import evaluate_given, read_folder
from ._main import command
from ._methods import methods_of
from ._model import quiet
from ._numbers import flag, whole_number
from ._sampling import guidance_scale, read_text
from ._scores import backbones_of, move, scores_of, scores_table, write_scores


@command("evaluate", free_text=("images", "reference", "prompts_file", "negative_prompt"))
def main(cfg: DictConfig, run: Run) -> None:
    """Make the pictures that are missing, or take those given, and score them."""
    if cfg.images is not None:
        evaluate_given(cfg, run)
        return
    flag(cfg, "log_looks")
    for key in ("steps", "batch_size", "truth_steps", *(["n"] if cfg.n is not None else [])):
        whole_number(cfg, key, 1)
    seeds = read_seeds(cfg)
    read_text(cfg, "negative_prompt")
    asked = read_asked(cfg)
    reference = None if cfg.reference is None else read_folder("reference", cfg.reference)[0]
    scores, notes = scores_of(with_judge(cfg, asked), "a model")
    trainer = _trainer(cfg)
    pipe = _pipeline(cfg)
    settings = sampling_settings(cfg, pipe, cfg.steps, guidance_scale(cfg, pipe))
    if cfg.trainer.precision != "32-true":
        settings["precision"] = str(cfg.trainer.precision)
    settings["batch_size"] = cfg.batch_size
    pictures = pictures_of(
        Path(), list(zip(asked.prompts, asked.numbers, strict=True)), seeds, settings
    )

    methods = methods_of(cfg)
    with apply(pipe, methods):  # now, since nothing is written yet
        pass

    run.info(seeds=seeds, settings=settings)
    files = [
        *model_files(pipe),
        *([Path(cfg.prompts_file).expanduser()] if cfg.prompts_file else []),
    ]
    for file in files:
        run.used_file(file)
    with quiet():
        report_cuts(pipe, asked.prompts, run, read_text(cfg, "negative_prompt"))
    backbones = backbones_of(scores.values())
    run.info(
        judges={name_of(each): backbone_digest(each) for each in backbones},
        domain_sha256=None if asked.emoji is None else asked.emoji.sha256,
    )
    cache = None if cfg.cache is None else Path(cfg.cache).expanduser()
    truths = Truths(pipe, pictures, settings, cfg.truth_steps, cache)
    module = EvaluationModule(
        pipe,
        methods,
        AskBatches(len(pictures), cfg.batch_size),
        run.dir,
        Drawing(pipe, pictures),
        settings,
        backbones=backbones,
        prepare=truths.make if any("pairs" in score.needs for score in scores.values()) else None,
    )
    if not run_test(trainer, module):
        return
    run.info(device=str(pipe.device))
    move(scores.values(), pipe.device)
    images = run.dir / "images"
    remove_surplus(images, pictures)
    material = _material(cfg, asked, pictures, scores, reference, images)
    if module.prepare is not None:
        material = replace(material, pairs=truths.read(run.dir))
    found = judge(scores, material)
    found.notes |= notes
    _finish(cfg, run, pictures, found, settings, len(asked.prompts))


def _material(
    cfg: DictConfig,
    asked: Asked,
    pictures: Sequence[Picture],
    scores: Mapping[str, Score],
    reference: PictureFiles | None,
    images: Path,
) -> Material:
    seeds = len(pictures) // len(asked.prompts)
    missing = {"clip": "no CLIP that could judge: give metrics.text.clip=FOLDER"}
    material = Material(
        PictureFiles([images / each.file for each in pictures]),
        prompts=[each.prompt for each in pictures],
        clusters=np.repeat(np.arange(len(asked.prompts)), seeds) if seeds > 1 else None,
        reference=reference,
        missing=missing,
        pair_name="ode",
        own_cache=images.parent / "features",
        cache=None if cfg.cache is None else Path(cfg.cache).expanduser() / "features",
        chunk=cfg.batch_size,
    )
    if asked.emoji is None:
        missing["judge"] = "concepts are known of captions of the domain alone, not of prompts_file"
        if reference is None:
            missing["reference"] = "no real pictures to compare with: give reference=FOLDER"
        return material
    needs = {need for score in scores.values() for need in score.needs}
    if "judge" in needs or ("reference" in needs and reference is None):
        real = RealPictures.of(asked.emoji, cfg.cache)
        material = replace(material, judge=AskedPictures(real, asked.places))
        if reference is None:
            material = replace(material, reference=real.pixels[asked.emoji.indices("train")])
    return material


def _finish(
    cfg: DictConfig,
    run: Run,
    pictures: Sequence[Picture],
    found: Scores,
    settings: Mapping[str, Any],
    prompts: int,
) -> None:
    # Before the scores are written: whoever can read them has looked.
    if cfg.log_looks and cfg.split != "dev" and cfg.prompts_file is None:
        log_look(_look(cfg, settings, found, prompts))
    write_scores(
        run,
        found,
        {
            "file": [f"images/{each.file}" for each in pictures],
            "prompt": [each.prompt for each in pictures],
            "seed": [each.seed for each in pictures],
        },
    )
    run.log({"run/pictures": len(pictures), "run/prompts": prompts})
    cost = read_cost(run.dir / "cost.json", settings)
    if cost is None:
        for name in ("tflops_all", "tflops_conv_linear", "seconds_per_image"):
            run.note(f"cost/{name}", "all pictures were there, and no cost.json of their making")
    else:
        run.log(cost["metrics"])
        print(cost_table(cost))
    print(scores_table(found))
    print(f"{len(pictures)} pictures of {prompts} prompts in {run.dir / 'images'}")


def _look(
    cfg: DictConfig, settings: Mapping[str, Any], found: Scores, prompts: int
) -> dict[str, Any]:
    # The columns of `concept_accuracy`, which looks at the same captions.
    shares = {
        name.partition("/")[2]: f"{found.metrics.get(name, np.nan):.4f}"
        for name in (ACCURACY, f"{ACCURACY}_relative", COPIES)
    }
    model = "+".join([Path(settings["model"]).name, *settings.get("methods", {})])
    return {
        "command": "evaluate",
        "model": model,
        **{key: settings[key] for key in ("model_sha256", "scheduler", "steps", "guidance")},
        **{key: cfg[key] for key in ("cells", "split")},
        "captions": prompts,
        "seeds": " ".join(map(str, read_seeds(cfg))),
        **shares,
    }


def _pipeline(cfg: DictConfig) -> DiffusionPipeline:
    """On the CPU: the trainer moves it to the device of each process."""
    given = cfg.copy()
    OmegaConf.set_struct(given, False)
    given.device = "cpu"
    return load_pipeline(given, cfg.steps)


def _trainer(cfg: DictConfig) -> lightning.Trainer:
    chosen = f"trainer={HydraConfig.get().runtime.choices['trainer']}"
    if chosen == "trainer=fsdp" or cfg.trainer.get("strategy") == "fsdp":
        raise ValueError(f"{chosen}: a model is sampled whole: use trainer=ddp")
    try:
        return instantiate(
            cfg.trainer,
            logger=False,
            enable_checkpointing=False,
            callbacks=[TQDMProgressBar(refresh_rate=1)],
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException):
            raise ValueError(f"{chosen}: {error.__cause__}") from error
        raise
