"""The front door: `load`, which knows every checkpoint format."""

from __future__ import annotations

from .pipelines.load import load

__all__ = ["load"]
