"""`python scripts/generate.py`: pictures from prompts, with what they cost."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from omegaconf import DictConfig
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from ..api import load
from ..pipelines.fingerprint import WEIGHT_ENDINGS
from ..runs.atomic import write_atomic
from ..runs.environment import sha256
from ..runs.generation import GenerationCost, cost_table, read_cost
from ..runs.pictures import grid, picture_name, read_settings, write_png
from ..runs.record import Run
from ..sampling.generate import cut_off, default_guidance, default_size, sample
from ._main import command
from ._prompts import check_unicode, read_prompts

_CUTS_SHOWN = 3  # on stderr
_CUTS_KEPT = 1000  # in run.json


@dataclass(frozen=True)
class Picture:
    """One picture to make: which prompt with which noise, and the file it goes to."""

    file: Path
    prompt: str
    seed: int
    index: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What a generation left: the pictures, in order, how many are new, and their cost."""

    pictures: list[Picture]
    new: int
    cost: dict[str, Any] | None


@command("generate", free_text=("prompts", "prompts_file", "negative_prompt"))
def main(cfg: DictConfig, run: Run) -> None:
    """Make the pictures that the settings ask for, a grid of them, and the record."""
    made = make_pictures(cfg, run)
    shown = made.pictures[: cfg.grid_max]
    if shown:
        captions = [
            (each.prompt or "(empty prompt)")
            + (f" · seed {each.seed}" if cfg.num_images > 1 else "")
            for each in shown
        ]
        columns = cfg.num_images if 1 < cfg.num_images <= 10 else min(10, round(len(shown) ** 0.5))
        files = [picture.file for picture in shown]
        write_png(run.dir / "grid.png", grid(zip(files, captions, strict=True), columns), {})
    if made.cost:
        print(cost_table(made.cost))
    total = len(made.pictures)
    print(f"{total} pictures in {run.dir / 'images'}, {made.new} of them new")
    if shown:
        part = f"the first {len(shown)} of them" if len(shown) < total else "all of them"
        print(f"{run.dir / 'grid.png'} shows {part}")


def make_pictures(cfg: DictConfig, run: Run) -> Made:
    """Make those of the pictures that are not in `run.folder / "images"` yet.

    Each is a PNG with its settings in text chunks. Pictures there with the same settings are kept,
    others under the same names are replaced, and what is left of a longer run is removed. Logs
    `cost/…` (of one picture) and `run/…`.

    Raises ValueError or FileNotFoundError for settings that are not allowed, before anything is
    written.
    """
    prompts = read_prompts(cfg)
    negative = _text(cfg, "negative_prompt")
    seed = _whole(cfg, "seed", 0)
    steps, copies = _whole(cfg, "steps", 1), _whole(cfg, "num_images", 1)
    batch_size = _whole(cfg, "batch_size", 1)
    _whole(cfg, "grid_max", 0)
    pipe = _pipeline(cfg, steps, negative)
    height, width = _size(cfg, pipe)
    guidance = _guidance(cfg, pipe)
    files = _model_files(Path(pipe.config._name_or_path))
    settings = {
        "model": str(cfg.model.source),
        "model_sha256": _digest([sha256(file) for file in files]),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": _digest(_public(pipe.scheduler.config)),
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative,
        "height": height,
        "width": width,
    }

    seeds = range(seed, seed + copies)
    run.info(device=str(pipe.device), seeds=list(seeds), settings=settings)
    for file in [*files, *([Path(cfg.prompts_file).expanduser()] if cfg.prompts_file else [])]:
        run.used_file(file)
    with _quiet():
        _report_cuts(pipe, prompts, run)
    folder = run.dir / "images"
    pictures = []
    for number in range(len(prompts) * copies):
        index, copy = divmod(number, copies)
        own = {"prompt": prompts[index], "seed": seed + copy, "index": index}
        file = folder / picture_name(number)
        pictures.append(Picture(file, prompts[index], seed + copy, index, {**own, **settings}))
    missing = {each.file for each in pictures if read_settings(each.file) != each.settings}
    _remove_surplus(folder, pictures)

    bar = tqdm(total=len(pictures), initial=len(pictures) - len(missing), unit="picture")
    with bar, GenerationCost(pipe) as cost:
        for start in range(0, len(pictures), batch_size):
            # A batch with one picture missing is made whole, so that its shape, and with it every
            # bit of its pictures, is as in a run that was never stopped.
            batch = pictures[start : start + batch_size]
            if not any(each.file in missing for each in batch):
                continue
            with _quiet(), cost.batch(len(batch)):
                images = sample(
                    pipe,
                    [each.prompt for each in batch],
                    [(each.seed, each.index) for each in batch],
                    steps=steps,
                    guidance=guidance,
                    height=height,
                    width=width,
                    negative_prompt=negative,
                )
            for each, image in zip(batch, images, strict=True):
                if each.file in missing:
                    write_png(each.file, image, each.settings)
                    bar.update()
    run.log({"run/images": len(pictures), "run/images_new": len(missing)})
    return Made(pictures, len(missing), _keep_cost(run, cost.result(), settings))


def _keep_cost(
    run: Run, found: dict[str, Any] | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Log the cost and keep it in `cost.json`; where nothing was made, take what is kept there."""
    path = run.dir / "cost.json"
    if found is not None:
        content = {"settings": settings, "cost": found}
        write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        found = read_cost(path, settings)
    if found is None:
        for name in ("tflops_all", "tflops_conv_linear", "seconds_per_image"):
            run.note(f"cost/{name}", "all pictures were there, and no cost.json of their making")
    else:
        run.log(found["metrics"])
    return found


def _model_files(path: Path) -> list[Path]:
    """What the model was read from: weights, configurations and vocabularies."""
    if path.is_file():
        return [path]
    endings = (*WEIGHT_ENDINGS, ".json", ".txt")
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in endings)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    # Keys with an underscore are diffusers' own notes, in no fixed order.
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def _text(cfg: DictConfig, key: str) -> str | None:
    value = cfg[key]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}={value}: must be one text")
    if value is not None:
        check_unicode(key, value)
    return value


def _whole(cfg: DictConfig, key: str, least: int) -> int:
    value = cfg[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key}={value}: must be a whole number, {least} or more")
    return value


def _size(cfg: DictConfig, pipe: DiffusionPipeline) -> tuple[int, int]:
    sizes = []
    for key, own in zip(("height", "width"), default_size(pipe), strict=True):
        value = cfg[key] if cfg[key] is not None else cfg.model.get(key)
        value = own if value is None else value
        # 8: the pipelines of diffusers want it whatever the autoencoder's factor.
        if not isinstance(value, int) or value < 8 or value % 8:
            raise ValueError(f"{key}={value}: must be a multiple of 8 pixels")
        sizes.append(value)
    return sizes[0], sizes[1]


def _guidance(cfg: DictConfig, pipe: DiffusionPipeline) -> float:
    value = cfg.guidance if cfg.guidance is not None else cfg.model.get("guidance")
    value = default_guidance(pipe) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e4:
        raise ValueError(f"guidance={value}: must be a number, 0 or more")
    return float(value)


def _pipeline(cfg: DictConfig, steps: int, negative: str | None) -> DiffusionPipeline:
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if cfg.model.source is None:
        raise ValueError(f"model={cfg.model.name}: says no weights; give model.source=...")
    with _quiet():
        pipe = load(cfg.model.source, scheduler=cfg.scheduler, device=str(device))
    pipe.set_progress_bar_config(disable=True)
    takes = inspect.signature(pipe.__call__).parameters
    if "image" in takes:
        raise ValueError(f"model={cfg.model.source}: edits pictures; give a text-to-image model")
    if negative is not None and "negative_prompt" not in takes:
        raise ValueError(f"negative_prompt: {type(pipe).__name__} takes none")
    try:
        pipe.scheduler.set_timesteps(steps)
    except ValueError as error:
        raise ValueError(f"steps={steps}: {type(pipe.scheduler).__name__}: {error}") from error
    return pipe


def _report_cuts(pipe: DiffusionPipeline, prompts: list[str], run: Run) -> None:
    """Say on stderr and in `run.json` what of too long prompts the text encoder does not read."""
    cuts = []
    for index, prompt in enumerate(prompts):
        if lost := cut_off(pipe, prompt):
            cuts.append({"prompt": index, "cut": lost[:200] + ("…" if len(lost) > 200 else "")})
    for cut in cuts[:_CUTS_SHOWN]:
        print(f"prompt {cut['prompt']} is too long; cut off: {cut['cut']!r}", file=sys.stderr)
    if len(cuts) > _CUTS_SHOWN:
        print(f"… and {len(cuts) - _CUTS_SHOWN} more, see run.json", file=sys.stderr)
    run.info(prompts_cut=cuts[:_CUTS_KEPT])
    run.log({"run/prompts_cut": len(cuts)})


def _remove_surplus(folder: Path, pictures: list[Picture]) -> None:
    wanted = {picture.file.name for picture in pictures}
    for file in folder.glob("[0-9]" * 6 + "*.png"):
        if file.name not in wanted and read_settings(file) is not None:
            file.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the warnings of long prompts that our own stand for."""
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()
