"""The methods that `method=[…]` names, and their settings."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ..api import Method
from ._sampling import typed_or_own


def methods_of(cfg: DictConfig) -> dict[str, Method]:
    """The methods that `method=[…]` names, each a function of a pipeline; {} for none."""
    return {name: instantiate(each) for name, each in method_configs(cfg).items()}


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
