"""Reading a diffusers folder: `model_index.json` and one folder a component."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .checkpoints import WEIGHT_ENDINGS, check_safetensors, one_line, read_json
from .tokenizers import load_tokenizer

PIPELINES: dict[str, type[DiffusionPipeline]] = {
    cls.__name__: cls
    for cls in (
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        StableDiffusionInstructPix2PixPipeline,
        LatentConsistencyModelPipeline,
    )
}
# What an index may name for each component: anything else is code or a model we do not know.
MODELS: dict[str, tuple[type[ModelMixin | PreTrainedModel], ...]] = {
    "unet": (UNet2DConditionModel,),
    "vae": (AutoencoderKL, AutoencoderTiny),
    "text_encoder": (CLIPTextModel,),
    "text_encoder_2": (CLIPTextModelWithProjection,),
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
# Filters and adapters beside the model: never loaded.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermark")


def read_index(folder: str | Path) -> dict[str, Any]:
    """The checked content of `model_index.json`.

    Raises:
        FileNotFoundError: no folder, or no index in it.
        ValueError: not JSON; a transformer pipeline; a pipeline or component outside the Stable
            Diffusion family; a component that would run code from the folder.
    """
    folder = Path(folder)
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no model_index.json, so not a diffusers pipeline")
    index = read_json(path)
    name = index.get("_class_name")
    if "transformer" in index:
        raise ValueError(
            f"{path}: {name} denoises with a transformer; edgegen works on UNets of the Stable "
            f"Diffusion family: {', '.join(PIPELINES)}"
        )
    if not isinstance(name, str) or name not in PIPELINES:
        raise ValueError(
            f"{path}: pipeline class {name} is not supported: allowed are {', '.join(PIPELINES)}"
        )
    for component, value in index.items():
        if isinstance(value, list) and component not in LEFT_OUT and value != [None, None]:
            _check_component(path, component, value)
    return index


def _check_component(path: Path, component: str, value: list[Any]) -> None:
    library, name = [*value, None, None][:2]
    if component in MODELS:
        allowed = [cls.__name__ for cls in MODELS[component]]
        known = library in ("diffusers", "transformers") and name in allowed
    elif component in TOKENIZERS:
        allowed = ["CLIPTokenizer", "CLIPTokenizerFast"]
        known = library == "transformers" and name in allowed
    elif component == "scheduler":
        allowed = ["any scheduler of diffusers"]
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        is_scheduler = isinstance(cls, type) and issubclass(cls, SchedulerMixin)
        known = library == "diffusers" and is_scheduler
    else:
        raise ValueError(f"{path}: unknown component '{component}' ({library}.{name})")
    if not known:
        raise ValueError(
            f"{path}: {component} is {library}.{name}: allowed is {' or '.join(allowed)}"
        )


Reader = Callable[[Any, Path, torch.dtype], Any]
"""(class, folder, dtype) to a network, or None for one that is stored as usual."""


def load_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    allow_pickle: bool = False,
    reader: Reader | None = None,
) -> tuple[type[DiffusionPipeline], dict[str, Any]]:
    """Pipeline class and its arguments, read from a diffusers folder.

    `reader` reads the networks that diffusers and transformers cannot, see `load`.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    folder = Path(folder)
    index = read_index(folder)
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if name in LEFT_OUT or name.startswith("_"):
            continue
        if not isinstance(value, list):
            parts[name] = value  # an argument such as force_zeros_for_empty_prompt
        elif name in MODELS and value[1] is not None:
            cls = next(cls for cls in MODELS[name] if cls.__name__ == value[1])
            own = reader(cls, folder / name, dtype) if reader is not None else None
            if own is None:
                own = load_model(cls, folder / name, dtype, variant, allow_pickle)
            parts[name] = own
        elif name in TOKENIZERS and value[1] is not None:
            parts[name] = load_tokenizer(folder / name)
        elif name == "scheduler":
            parts[name] = load_scheduler(folder / name, value[1])
    return PIPELINES[index["_class_name"]], parts


def load_model(
    cls: type[ModelMixin | PreTrainedModel],
    folder: Path,
    dtype: torch.dtype,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> ModelMixin | PreTrainedModel:
    """One model from its folder, in `eval` mode; every weight must come from the file.

    Raises:
        FileNotFoundError, ValueError: one line that names the folder or file.
    """
    safe = check_weights(folder, allow_pickle)
    try:
        with _no_progress_bar():
            model, info = cls.from_pretrained(
                str(folder),
                dtype=dtype,
                variant=variant if any(folder.glob(f"*.{variant}*")) else None,
                use_safetensors=safe,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not readable as {cls.__name__}: {one_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{folder}: {len(missing)} weights of {cls.__name__} are missing, first {missing[0]}"
        )
    return model.eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    # transformers draws one for each text encoder, however small.
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_scheduler(folder: Path, class_name: str) -> SchedulerMixin:
    """The scheduler in a folder; one-line errors."""
    if not (folder / "scheduler_config.json").is_file():
        raise FileNotFoundError(f"{folder / 'scheduler_config.json'}: no such file")
    config = read_json(folder / "scheduler_config.json")
    try:
        return getattr(diffusers, class_name).from_config(config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{folder}: not readable as {class_name}: {one_line(error)}") from error


def check_weights(folder: Path, allow_pickle: bool) -> bool:
    """Whether a component folder holds safetensors (True) or only allowed pickles (False).

    Raises:
        FileNotFoundError: no folder, or no weights in it.
        ValueError: a truncated safetensors file, or pickles that are not allowed.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'}: no such file")
    read_json(folder / "config.json")
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_ENDINGS)
    safe = [file for file in files if file.suffix == ".safetensors"]
    for file in safe:
        check_safetensors(file)
    if not files:
        raise FileNotFoundError(f"{folder}: no weights (*.safetensors) in it")
    if not safe and not allow_pickle:
        raise ValueError(
            f"{files[0]}: a pickle, which can run code when read; convert it to safetensors, or "
            "pass allow_pickle=True"
        )
    return bool(safe)
