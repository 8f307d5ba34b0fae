"""What the result of an edit depends on, in a form that can be kept and compared on resuming."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..assets import file_sha256
from ..media.clips import Clip
from ..media.pictures import find_pictures


def fingerprint(clip: Clip) -> str:
    """Of the file or folder behind a clip."""
    path = getattr(clip, "path", None)
    if path is None:
        return clip.name
    if path.is_dir():
        listed = [(str(file.relative_to(path)), file_sha256(file)) for file in find_pictures(path)]
        return hashlib.sha256(repr(listed).encode()).hexdigest()
    return file_sha256(path)


def weights_checksum(pipe: Any) -> int:
    """A checksum of all weights, as they are now."""
    total = 0
    with torch.inference_mode(False), torch.no_grad():  # in which torchao's give no parts
        for name, part in sorted(pipe.components.items()):
            if isinstance(part, nn.Module):
                for key, value in part.state_dict().items():
                    total = _checksum(value, zlib.crc32(f"{name}.{key}".encode(), total))
    return total


def _checksum(value: torch.Tensor, total: int) -> int:
    if not hasattr(value, "__tensor_flatten__"):
        data: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return zlib.crc32(data, total)
    names, how = value.__tensor_flatten__()  # torchao's weights are of several tensors
    total = zlib.crc32(f"{type(value).__name__} {how}".encode(), total)
    for name in names:
        total = _checksum(getattr(value, name), total)
    return total


def plain(value: Any) -> Any:
    """What JSON can hold: anything else by its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items() if not _private(key)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _private(key: Any) -> bool:
    return str(key).startswith("_")  # diffusers' own notes
