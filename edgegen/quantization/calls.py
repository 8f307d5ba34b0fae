"""Calls of networks: what quantization looks at, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Attributes:
        args, kwargs: what it is called with.
        time: timestep, in training timesteps; None for networks that know none.
        path: which network of the pipeline: `unet`, `text_encoder`, `vae.decoder`, …
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None
    path: str = "unet"


def kept_calls(
    folder: str | Path,
    about: Mapping[str, Any],
    make: Callable[[], Sequence[Call]],
    device: str | torch.device = "cpu",
) -> list[Call]:
    """Calls from a file of `folder`, or made and kept there.

    Args:
        about: all that they depend on, as JSON can hold it; the file is named by its hash.
        device: that their tensors shall be on.

    Raises:
        ValueError: a damaged file, or arguments that are neither tensors nor plain values.
    """
    text = json.dumps(dict(about), sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    path = Path(folder).expanduser() / f"calls-{key[:16]}.safetensors"
    if not path.is_file():
        calls = list(make())
        tensors: dict[str, torch.Tensor] = {}
        packed = [
            [_pack(call.args, tensors), _pack(call.kwargs, tensors), call.time, call.path]
            for call in calls
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, temporary, {"about": text, "calls": json.dumps(packed)})
        temporary.replace(path)
        return calls
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            noted = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if noted["about"] != text:
            raise ValueError("of another pipeline or other settings")
        return [
            Call(_unpack(args, found), _unpack(kwargs, found), time, network)
            for args, kwargs, time, network in json.loads(noted["calls"])
        ]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no calibration calls, or damaged; remove it") from error


def _pack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """As JSON holds it; equal tensors (the text features of all steps) are kept once."""
    if isinstance(tree, torch.Tensor):
        own = tree.detach().cpu().contiguous()
        data = own.reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(data + f"{own.dtype}{tuple(own.shape)}".encode()).hexdigest()
        tensors.setdefault(digest, own.clone())
        return {"tensor": digest}
    if isinstance(tree, Mapping):
        return {"mapping": {key: _pack(value, tensors) for key, value in tree.items()}}
    if isinstance(tree, tuple | list):
        return {type(tree).__name__: [_pack(each, tensors) for each in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise ValueError(f"calibration.store: cannot keep a {type(tree).__name__}")


def _unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: _unpack(value, tensors) for key, value in content.items()}
    return {"tuple": tuple, "list": list}[kind](_unpack(each, tensors) for each in content)
