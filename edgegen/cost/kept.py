"""Costs of plain networks, kept from one tracker to the next of the same process.

Plain is a network that runs as its classes were written: no hooks, no replaced `forward`, no bits
of its own, no compiled graph. What it computes for a given signature then follows from its
classes, their settings and the shapes of its weights, all of which are compared. Any other
network is counted anew by every tracker.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .bits import has_bits
from .tally import Cost

_KEPT: WeakKeyDictionary[nn.Module, tuple[Hashable, dict[Hashable, Cost]]] = WeakKeyDictionary()

# What every module has; of these, weights and hooks are looked at one by one.
_OWN = frozenset(nn.Module().__dict__)
# Notes of transformers on how weights are read from files.
_NOTES = frozenset({"_weight_conversions"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size, Enum, type)
# What does not say by its attributes what it does, or holds on to a network.
_OPAQUE = (nn.Module, torch.Tensor, FunctionType, MethodType, partial)


class _NotPlainError(Exception):
    pass


def kept(network: nn.Module) -> dict[Hashable, Cost] | None:
    """Costs of calls of a plain network, to be read and added to; None for one that is not.

    `network` itself may have one hook before its calls and one after, as a tracker's.
    """
    try:
        found = _fingerprint(network)
    except _NotPlainError:
        _KEPT.pop(network, None)
        return None
    before = _KEPT.get(network)
    if before is None or before[0] != found:
        before = _KEPT[network] = (found, {})
    return before[1]


def _fingerprint(network: nn.Module) -> Hashable:
    if _get_current_dispatch_mode() is not None or torch_module._has_any_global_hook():
        raise _NotPlainError
    functional = nn.functional
    told: list[Any] = [
        (functional.linear, functional.conv2d, functional.scaled_dot_product_attention),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    ]
    seen: dict[int, Hashable] = {}  # objects that many modules share, such as a configuration
    tensors: dict[int, int] = {}  # which weights are one and the same
    for name, module in network.named_modules():
        own, kind = module.__dict__, type(module)
        hooks = max(len(own[each]) for each in _HOOKS)
        if hooks > (module is network) or "forward" in own or has_bits(module):
            raise _NotPlainError
        if own.get("_compiled_call_impl") is not None or "parametrizations" in own["_modules"]:
            raise _NotPlainError
        told.append((name, kind, kind.forward, module.training))
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                place = tensors.setdefault(id(tensor), len(tensors))
                told.append((place, type(tensor), tensor.shape, tensor.dtype, tensor.device))
        for key, value in own.items():
            if key not in _OWN and key not in _NOTES:
                told.append((key, value if isinstance(value, _PLAIN) else _told(value, seen)))
    return tuple(told)


def _told(value: Any, seen: dict[int, Hashable], depth: int = 0) -> Hashable:
    """A setting by what it says, hashable, without holding on to any network."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in seen:
        return seen[id(value)]
    found: Hashable
    if isinstance(value, FunctionType) and value.__closure__ is None:
        found = value
    elif depth > 3 or isinstance(value, _OPAQUE):
        raise _NotPlainError
    elif isinstance(value, list | tuple | set | frozenset):
        found = (type(value), *(_told(each, seen, depth + 1) for each in value))
    elif isinstance(value, Mapping):
        items = ((str(key), _told(each, seen, depth + 1)) for key, each in value.items())
        found = (type(value), *items)
    elif not hasattr(value, "__dict__"):
        raise _NotPlainError
    else:
        items = ((key, _told(each, seen, depth + 1)) for key, each in vars(value).items())
        found = (type(value), *items)
    seen[id(value)] = found
    return found
