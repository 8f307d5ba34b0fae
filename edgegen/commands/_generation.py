"""What the commands that make pictures share: the pipeline, its methods, the pictures."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from tqdm import tqdm

from ..pipelines.fingerprint import WEIGHT_ENDINGS
from ..pipelines.schedulers import scheduler_config
from ..runs.environment import code_version, sha256
from ..runs.generation import GenerationCost
from ..runs.identity import input_files
from ..runs.pictures import picture_name, read_settings, write_png
from ..runs.record import Run
from ..sampling.generate import cut_off, read_image, sample
from ._methods import method_settings
from ._model import load_model, load_options, quiet
from ._sampling import image_guidance, picture_size, read_text

_CUTS_SHOWN = 3  # on stderr
_CUTS_KEPT = 1000  # in run.json


@dataclass(frozen=True)
class Picture:
    """One picture to make: which prompt with which noise, and the file it goes to.

    `index` is the number that the noise is drawn by, together with `seed`; `settings` all that the
    picture depends on, which its file repeats.
    """

    file: Path
    prompt: str
    seed: int
    index: int
    settings: dict[str, Any]


def pictures_of(
    folder: Path, asks: Sequence[tuple[str, int]], seeds: Sequence[int], settings: Mapping[str, Any]
) -> list[Picture]:
    """The pictures of all asks (prompt, index), ask by ask, one for each seed."""
    found: list[Picture] = []
    for prompt, index in asks:
        for seed in seeds:
            own = {"prompt": prompt, "seed": seed, "index": index, **settings}
            found.append(Picture(folder / picture_name(len(found)), prompt, seed, index, own))
    return found


def remove_surplus(folder: Path, pictures: Sequence[Picture]) -> None:
    """Remove what is left of a longer run."""
    wanted = {picture.file.name for picture in pictures}
    for file in folder.glob("[0-9]" * 6 + "*.png"):
        if file.name not in wanted and read_settings(file) is not None:
            file.unlink()


def draw(
    pipe: DiffusionPipeline,
    pictures: Sequence[Picture],
    batch_size: int,
    *,
    cost: GenerationCost | None = None,
    description: str | None = None,
) -> int:
    """Make those pictures whose files are missing or were made otherwise; how many they were.

    A batch with one picture missing is made whole, so that its shape, and with it every bit of its
    pictures, is as in a run that was never stopped.
    """
    missing = {each.file for each in pictures if read_settings(each.file) != each.settings}
    done = len(pictures) - len(missing)
    with tqdm(total=len(pictures), initial=done, desc=description, unit="picture") as bar:
        for start in range(0, len(pictures), batch_size):
            bar.update(draw_batch(pipe, pictures[start : start + batch_size], missing, cost))
    return len(missing)


def draw_batch(
    pipe: DiffusionPipeline,
    batch: Sequence[Picture],
    missing: Collection[Path],
    cost: GenerationCost | None = None,
) -> int:
    """Make one batch whole, unless none of its files is `missing`; how many files are new."""
    new = {each.file for each in batch} & set(missing)
    if not new:
        return 0
    settings = batch[0].settings
    with quiet(), cost.batch(len(batch)) if cost else nullcontext():
        images = sample(
            pipe,
            [each.prompt for each in batch],
            [(each.seed, each.index) for each in batch],
            steps=settings["steps"],
            guidance=settings["guidance"],
            height=settings["height"],
            width=settings["width"],
            negative_prompt=settings["negative_prompt"],
            image=settings.get("image"),
            image_guidance=settings.get("image_guidance"),
        )
    for each, image in zip(batch, images, strict=True):
        if each.file in new:
            write_png(each.file, image, each.settings)
    return len(new)


def sampling_settings(
    cfg: DictConfig, pipe: DiffusionPipeline, steps: int, guidance: float
) -> dict[str, Any]:
    """All that the pictures depend on beside prompt and noise, as kept in their files."""
    height, width = picture_size(cfg, pipe)
    settings = {
        **model_settings(cfg, pipe),
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": read_text(cfg, "negative_prompt"),
        "height": height,
        "width": width,
    }
    if (image := read_text(cfg, "image")) is not None:
        settings |= {"image": image, "image_sha256": sha256(Path(image))}
        settings["image_guidance"] = image_guidance(cfg)
    return settings


def model_settings(cfg: DictConfig, pipe: DiffusionPipeline) -> dict[str, Any]:
    """What pictures depend on beside how they are sampled: model, scheduler, methods, code."""
    settings: dict[str, Any] = {
        "model": str(cfg.model.source),
        "model_sha256": digest([sha256(file) for file in model_files(pipe)]),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": digest(scheduler_config(pipe.scheduler)),
    }
    if options := load_options(cfg):
        settings["load"] = options
    if methods := method_settings(cfg):
        settings["methods"] = methods
    return settings | made_by({"method": methods, "model": options})


def made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of pictures: the code, and the contents of the files that settings name, such as adaptors."""
    found: dict[str, Any] = {"code": code_version(), "torch": torch.__version__}
    if files := input_files(settings):
        found["inputs"] = files
    return found


def model_files(pipe: DiffusionPipeline) -> list[Path]:
    """What the model was read from: weights, configurations and vocabularies."""
    path = Path(pipe.config._name_or_path)
    if path.is_file():
        return [path]
    endings = (*WEIGHT_ENDINGS, ".json", ".txt")
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in endings)


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def load_pipeline(cfg: DictConfig, steps: int) -> DiffusionPipeline:
    """The pipeline of `cfg.model` with `cfg.scheduler`, on `cfg.device`.

    It makes pictures of text; where there is a `cfg.image`, it edits that.

    Raises ValueError or FileNotFoundError, naming the option.
    """
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_model(cfg, str(device))
    takes = inspect.signature(pipe.__call__).parameters
    _check_image(cfg, type(pipe).__name__, "image" in takes)
    if cfg.get("negative_prompt") is not None and "negative_prompt" not in takes:
        raise ValueError(f"negative_prompt: {type(pipe).__name__} takes none")
    try:
        pipe.scheduler.set_timesteps(steps)
    except ValueError as error:
        raise ValueError(f"steps={steps}: {type(pipe.scheduler).__name__}: {error}") from error
    return pipe


def _check_image(cfg: DictConfig, pipeline: str, takes_one: bool) -> None:
    image = read_text(cfg, "image")
    if takes_one and image is None:
        wanted = "image=FILE as well" if "image" in cfg else "a text-to-image model"
        raise ValueError(f"model={cfg.model.source}: edits pictures; give {wanted}")
    if image is None:
        return
    if not takes_one:
        raise ValueError(f"image={image}: {pipeline} edits no pictures")
    if not Path(image).is_file():
        raise FileNotFoundError(f"image={image}: no such file")
    try:
        read_image(image, 8, 8)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image={image}: damaged, or no picture") from error


def report_cuts(
    pipe: DiffusionPipeline, prompts: Sequence[str], run: Run, negative: str | None = None
) -> None:
    """Say on stderr and in `run.json` what of too long prompts the text encoder does not read."""
    cuts: list[dict[str, Any]] = []
    if negative is not None and (lost := cut_off(pipe, negative)):
        run.info(negative_prompt_cut=lost)
        print(f"negative_prompt is too long; cut off: {lost!r}", file=sys.stderr)
    for index, prompt in enumerate(prompts):
        if lost := cut_off(pipe, prompt):
            cuts.append({"prompt": index, "cut": lost[:200] + ("…" if len(lost) > 200 else "")})
    for cut in cuts[:_CUTS_SHOWN]:
        print(f"prompt {cut['prompt']} is too long; cut off: {cut['cut']!r}", file=sys.stderr)
    if len(cuts) > _CUTS_SHOWN:
        print(f"… and {len(cuts) - _CUTS_SHOWN} more, see run.json", file=sys.stderr)
    run.info(prompts_cut=cuts[:_CUTS_KEPT])
    run.log({"run/prompts_cut": len(cuts)})
