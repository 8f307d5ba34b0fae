"""What the metrics take for pictures, and the packages that only some of them need."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor


def check_pictures(*batches: Tensor) -> None:
    """Raise ValueError unless all are (B, 3, H, W) floats of one shape."""
    for batch in batches:
        if batch.ndim != 4 or batch.shape[1] != 3 or not batch.is_floating_point():
            found = f"{tuple(batch.shape)} of {batch.dtype}"
            raise ValueError(f"pictures must be (B, 3, H, W) floats in [0, 1], got {found}")
        if batch.shape != batches[0].shape:
            shapes = f"{tuple(batches[0].shape)} and {tuple(batch.shape)}"
            raise ValueError(f"pictures to compare must be of one shape, got {shapes}")


def as_floats(pictures: Iterable[np.ndarray]) -> Tensor:
    """(H, W, 3) uint8 pictures of one shape to (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255


def as_bytes(pictures: Tensor) -> Tensor:
    """[0, 1] floats to uint8, rounded: exact for pictures that were 8-bit before."""
    return (pictures.clamp(0, 1) * 255).round().byte()


def optional(module: str, package: str, extra: str) -> ModuleType:
    """A module of a package that an extra of edgegen installs; one-line ValueError without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this metric needs the package '{package}' ({error}): pip install 'edgegen[{extra}]'"
        ) from error
