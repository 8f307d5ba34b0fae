"""The front door: `load`, which knows every checkpoint format, and the methods."""

from __future__ import annotations

from .pipelines.load import load
from .reuse import clockwork, deepcache, faster_diffusion

__all__ = ["clockwork", "deepcache", "faster_diffusion", "load"]
