"""Reading numbers and switches among the settings, for commands that need no torch to start too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig


def whole_number(cfg: Mapping[str, Any] | DictConfig, key: str, least: int) -> int:
    """The setting `key`. Raises ValueError, naming it, unless it is a whole number ≥ `least`."""
    value = cfg[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key}={value}: must be a whole number, {least} or more")
    return value


def read_number(cfg: Mapping[str, Any] | DictConfig, key: str) -> float:
    """The setting `key`. Raises ValueError, naming it, unless it is a number, 0 or more."""
    value = cfg[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e4:
        raise ValueError(f"{key}={value}: must be a number, 0 or more")
    return float(value)


def flag(cfg: DictConfig, key: str) -> bool:
    """The setting `key`. Raises ValueError, naming it, unless it is true or false."""
    value = cfg[key]
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value}: must be true or false")
    return value
