"""Weights as they are stored, and the bit widths that a quantized module tells the counter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class HasBits(Protocol):
    """A layer that computes at fewer bits than its tensors' dtypes show (simulated or packed).

    `weight_bits` may be fractional: vector quantization at 2.125 bits a value says 2.125.
    `stored_bytes` is what the layer's weights take where they are kept, scales, zero points and
    codebooks included. All three may be properties.
    """

    weight_bits: float
    act_bits: float
    stored_bytes: int


def has_bits(module: nn.Module) -> bool:
    # Asked for every module that runs: `nn.Module.__getattr__` and `isinstance` with the protocol
    # (which evaluates `stored_bytes`) are too slow.
    return "weight_bits" in module.__dict__ or hasattr(type(module), "weight_bits")


def declared_bits(running: Sequence[tuple[str, nn.Module]]) -> tuple[float, float] | None:
    """(weight bits, activation bits) of the innermost running module that declares them.

    Args:
        running: (name, module) pairs, outermost first.
    """
    for _, module in reversed(running):
        if has_bits(module):
            layer: Any = module
            return float(layer.weight_bits), float(layer.act_bits)
    return None


def declared_attention_bits(running: Sequence[tuple[str, nn.Module]]) -> float | None:
    """Bits of both operands of an attention product: the innermost `attention_bits` attribute.

    Attention products have no weight, and at low weight bits they are most of the BOPs that
    remain; whoever quantizes Q, K, V and the probabilities sets `attention_bits` on the
    attention module.
    """
    for _, module in reversed(running):
        bits = getattr(module, "attention_bits", None)
        if bits is not None:
            return float(bits)
    return None


def weights(module: nn.Module) -> tuple[list[torch.Tensor], int, int]:
    """(tensors, parameters, bytes): a module's weights, shared ones taken once.

    Returns:
        Its parameters and buffers, the number of values in the parameters, and the bytes that all
        of it takes where it is stored, with `stored_bytes` of the layers that have it.
    """
    tensors: dict[int, torch.Tensor] = {}
    spoken_for: set[int] = set()
    params = stored = 0
    for layer in module.modules():
        own = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
        for tensor in own:
            if id(tensor) not in tensors and isinstance(tensor, nn.Parameter):
                params += tensor.numel()
            tensors[id(tensor)] = tensor
        if has_bits(layer):
            inner = {id(t) for t in (*layer.parameters(), *layer.buffers())}
            if not inner or not inner <= spoken_for:
                stored += int(layer.stored_bytes)  # type: ignore[arg-type]
            spoken_for |= inner
    stored += sum(t.nbytes for key, t in tensors.items() if key not in spoken_for)
    return list(tensors.values()), params, stored
