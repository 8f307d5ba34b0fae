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
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ..api import Method
from ..pipelines.fingerprint import WEIGHT_ENDINGS
from ..pipelines.recommended import read_sampling
from ..pipelines.schedulers import scheduler_config
from ..runs.environment import code_version, sha256
from ..runs.generation import GenerationCost
from ..runs.identity import input_files
from ..runs.pictures import picture_name, read_settings, write_png
from ..runs.record import Run
from ..sampling.generate import cut_off, default_guidance, default_size, read_image, sample
from ._model import load_model, load_options, quiet
from ._prompts import check_unicode

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


def methods_of(cfg: DictConfig) -> dict[str, Method]:
    """The methods that `method=[…]` names, each a function of a pipeline; {} for none."""
    return {name: instantiate(each) for name, each in method_configs(cfg).items()}


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


def method_settings(cfg: DictConfig) -> dict[str, Any]:
    """Each method's name and all its settings, as JSON can hold them."""
    return {
        name: OmegaConf.to_container(each, resolve=True)
        for name, each in method_configs(cfg).items()
    }


def method_configs(cfg: DictConfig) -> dict[str, DictConfig]:
    """The config of each method that `method=[…]` names; ValueError for settings of another."""
    calibrate_as_sampled(cfg)
    found = {str(name): each for name, each in (cfg.get("method") or {}).items()}
    for name, each in found.items():
        if not isinstance(each, DictConfig) or "_target_" not in each:
            raise ValueError(f"method.{name}: give method=[{name}] beside it")
    return found


def calibrate_as_sampled(cfg: DictConfig) -> None:
    """Let calibrations that leave it open run as pictures are made, where that is known.

    Guidance, and for editors the picture and the guidance by it.
    """
    given: dict[str, Any] = {}
    for key in ("guidance", "image_guidance"):
        value = typed_or_own(cfg, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            given[key] = float(value)
    if isinstance(image := cfg.get("image"), str):
        given["images"] = [image]
    for each in (cfg.get("method") or {}).values():
        runs = each.get("calibration") if isinstance(each, DictConfig) else None
        if not isinstance(runs, DictConfig):
            continue
        for key, value in given.items():
            if runs.get(key) in (None, []):
                OmegaConf.update(runs, key, value, force_add=True)


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


def read_text(cfg: DictConfig, key: str) -> str | None:
    value = cfg.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key}={value}: must be one text")
    if value is not None:
        check_unicode(key, value)
    return value


def picture_size(cfg: DictConfig, pipe: DiffusionPipeline) -> tuple[int, int]:
    sizes = []
    for key, own in zip(("height", "width"), default_size(pipe), strict=True):
        value = cfg[key] if cfg[key] is not None else cfg.model.get(key)
        value = own if value is None else value
        # 8: the pipelines of diffusers want it whatever the autoencoder's factor.
        if not isinstance(value, int) or value < 8 or value % 8:
            raise ValueError(f"{key}={value}: must be a multiple of 8 pixels")
        sizes.append(value)
    return sizes[0], sizes[1]


def guidance_scale(cfg: DictConfig, pipe: DiffusionPipeline) -> float:
    value = typed_or_own(cfg, "guidance")
    value = default_guidance(pipe) if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e4:
        raise ValueError(f"guidance={value}: must be a number, 0 or more")
    return float(value)


def typed_or_own(cfg: DictConfig, key: str) -> Any:
    """A setting as typed, else the model's own; None where neither says.

    Its own is what its config says, else the `sampling.json` in its folder.
    """
    model = cfg.get("model") or {}
    for value in (cfg.get(key), model.get(key)):
        if value is not None:
            return value
    return read_sampling(model.get("source")).get(key)


def image_guidance(cfg: DictConfig) -> float | None:
    """Of an editor, by its picture: as typed, else the model's own; None leaves it to diffusers."""
    value = typed_or_own(cfg, "image_guidance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 1e4:
        raise ValueError(f"image_guidance={value}: must be a number, 1 or more")
    return float(value)


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
