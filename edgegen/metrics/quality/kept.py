"""Features kept on disk under a hash of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .backbone import name_of
from .efflite0 import BATCH, picture_features

CHUNK = 256  # pictures a file


class KeptFeatures:
    """Features of pictures by one backbone; what was computed before is read.

        KeptFeatures(EffLite0(), "cache")(pictures)

    Each file `NAME-HASH.safetensors` holds the features of a few pictures. The hash is of their
    pixels, of the backbone's weights and preparation, and of what else decides the last bits (the
    version of torch, the kind of device). So a file is never taken for other pictures or another
    network, and one that is damaged or does not say that it belongs there is computed anew.

    Args:
        backbone: as `load_backbone` gives it.
        folder: made where it is missing; None keeps nothing.
        chunk: pictures a file. A killed run loses one chunk at most.
    """

    def __init__(self, backbone: nn.Module, folder: str | Path | None, chunk: int = CHUNK) -> None:
        self.backbone, self.chunk = backbone, chunk
        self.folder = None if folder is None else Path(folder).expanduser()
        self.name = name_of(backbone)

    def __call__(
        self, pictures: Sequence[np.ndarray] | np.ndarray, description: str | None = None
    ) -> Tensor:
        """(N, D) float32 features on the CPU.

        Args:
            pictures: (H, W, 3) uint8 each, of any size; read a chunk at a time.
            description: of the progress bar; None shows none.

        Raises ValueError where there is no picture.
        """
        if len(pictures) == 0:
            raise ValueError("no pictures to compute features of")
        places = range(0, len(pictures), self.chunk)
        rows = []
        for start in tqdm(places, desc=description, disable=description is None, unit="chunk"):
            stop = min(start + self.chunk, len(pictures))
            rows.append(self._chunk([pictures[place] for place in range(start, stop)]))
        return torch.cat(rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the backbone and of what else its features depend on, but the pictures."""
        device = next((p.device.type for p in self.backbone.parameters()), "cpu")
        return hashlib.sha256(
            _json([backbone_digest(self.backbone), device, BATCH, torch.__version__])
        ).hexdigest()

    def _chunk(self, pictures: Sequence[np.ndarray]) -> Tensor:
        if self.folder is None:
            return features_by_size(self.backbone, pictures)
        key = hashlib.sha256(self.digest.encode())
        for picture in pictures:
            key.update(_json([picture.shape, str(picture.dtype)]))
            key.update(np.ascontiguousarray(picture).data)
        path = self.folder / f"{self.name}-{key.hexdigest()[:32]}.safetensors"
        found = _read(path, key.hexdigest(), len(pictures))
        if found is None:
            found = features_by_size(self.backbone, pictures)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            save_file({"features": found}, temporary, metadata={"key": key.hexdigest()})
            temporary.replace(path)
        return found


def features_by_size(backbone: nn.Module, pictures: Sequence[np.ndarray]) -> Tensor:
    """`picture_features` of pictures that need not be of one size: (N, D) float32."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        sizes.setdefault(picture.shape, []).append(place)
    rows: list[Tensor] = [torch.empty(0)] * len(pictures)
    for places in sizes.values():
        found = picture_features(backbone, (pictures[place] for place in places))
        for place, row in zip(places, found, strict=True):
            rows[place] = row
    return torch.stack(rows)


def backbone_digest(backbone: nn.Module) -> str:
    """SHA-256 of a backbone's code, settings and weights, and of the preparation of its pictures.

    Settings are the configuration of every module in it, where it has one, and its attributes that
    are numbers, texts or switches; what begins with an underscore is taken for state.
    """
    digest = hashlib.sha256(f"{type(backbone).__module__}.{type(backbone).__qualname__}".encode())
    with contextlib.suppress(OSError, TypeError):  # of a class typed in by hand there is no file
        digest.update(Path(inspect.getfile(type(backbone))).read_bytes())
    for name in ("size", "processor"):
        value: Any = getattr(backbone, name, None)
        value = value.to_dict() if hasattr(value, "to_dict") else value
        digest.update(_json([name, value]))
    for name, module in backbone.named_modules():
        digest.update(_json([name, type(module).__qualname__, _settings(module)]))
    for key, tensor in sorted(backbone.state_dict().items()):
        digest.update(_json([key, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and _is_plain(value)
    }
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        # Where a model was read from changes nothing.
        known = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        found["config"] = known
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _read(path: Path, key: str, count: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata, features = file.metadata() or {}, file.get_tensor("features")
    except (SafetensorError, OSError):
        return None
    fits = metadata.get("key") == key and features.ndim == 2 and len(features) == count
    return features if fits else None


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode()
