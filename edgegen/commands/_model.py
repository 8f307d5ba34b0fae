"""The model that `cfg.model` names, loaded with what is said of it there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from omegaconf import DictConfig
from torch import nn
from transformers.utils import logging as transformers_logging

from ..api import load
from ..pipelines.layout import channels_last
from ..pipelines.load import OPTIONS


def load_options(cfg: DictConfig) -> dict[str, Any]:
    """The arguments of `api.load` that are given beside the source and its scheduler."""
    return {key: cfg.model[key] for key in OPTIONS if cfg.model.get(key) is not None}


def load_model(cfg: DictConfig, device: str) -> DiffusionPipeline:
    """The pipeline of `cfg.model` with `cfg.scheduler`: in silence, no progress bar, channels last.

    Raises ValueError or FileNotFoundError, naming the option.
    """
    if cfg.model.source is None:
        name = cfg.model.name
        beside = f", or model=./{name} for the folder" if Path(name).is_dir() else ""
        raise ValueError(f"model={name}: says no weights; give model.source=...{beside}")
    try:
        with quiet():
            pipe = load(
                cfg.model.source, scheduler=cfg.scheduler, device=device, **load_options(cfg)
            )
    except (ValueError, FileNotFoundError) as error:
        # `load` names its arguments, which are options of the model here.
        names = "|".join(OPTIONS)
        raise type(error)(re.sub(rf"(?<![\w.])({names})=", r"model.\1=", str(error))) from error
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "vae"):
        if isinstance(net := getattr(pipe, name, None), nn.Module):
            channels_last(net)
    return pipe


@contextmanager
def quiet() -> Iterator[None]:
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
