"""Diffusion models and video editing cheap enough for a phone, measured honestly."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "apply": "api",
    "clockwork": "api",
    "deepcache": "api",
    "faster_diffusion": "api",
    "gating": "api",
    "load": "api",
    "quantize_": "api",
    "quantized": "api",
    "VideoEditor": "api",
    "CostTracker": "cost",
    "paired_error": "runs.paired",
}

if TYPE_CHECKING:
    from .api import (
        VideoEditor,
        apply,
        clockwork,
        deepcache,
        faster_diffusion,
        gating,
        load,
        quantize_,
        quantized,
    )
    from .cost import CostTracker
    from .runs.paired import paired_error

__all__ = [
    "CostTracker",
    "VideoEditor",
    "__version__",
    "apply",
    "clockwork",
    "deepcache",
    "faster_diffusion",
    "gating",
    "load",
    "paired_error",
    "quantize_",
    "quantized",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import edgegen` does not import torch.
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'edgegen' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
