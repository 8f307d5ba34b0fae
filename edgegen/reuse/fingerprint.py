"""Which UNet an adaptor was trained for."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_PRECISIONS = (torch.float16, torch.bfloat16)
_SAMPLES = 256  # values of each tensor that are looked at


def fingerprint(module: nn.Module) -> dict[str, str]:
    """`architecture`, `float16`, `bfloat16` → sha256 (hexadecimal).

    The first is over the names and shapes of the weights, the others over values of every one of
    them, rounded. So a model has the same fingerprint in a precision whether it was stored in that
    or in float32, and fine-tuning changes it. On the `meta` device there is the first one only.
    """
    state = module.state_dict()
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in state.items()])
    found = {"architecture": hashlib.sha256(shapes.encode()).hexdigest()}
    if any(tensor.is_meta for tensor in state.values()):
        return found
    samples = [_sample(tensor) for tensor in state.values()]
    for precision in _PRECISIONS:
        digest = hashlib.sha256()
        for sample in samples:
            digest.update(sample.to(precision).view(torch.int16).numpy().tobytes())
        found[str(precision).removeprefix("torch.")] = digest.hexdigest()
    return found


def same_base(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two fingerprints may be of the same model in different precisions.

    Where one has no values, the architecture decides.
    """
    values = [key for key in one if key in other and key != "architecture"]
    if not values:
        return one["architecture"] == other["architecture"]
    return any(one[key] == other[key] for key in values)


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // _SAMPLES)].to("cpu", torch.float32)
