"""How a method tells trackers that a network now does something else with the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from torch import nn

_ATTRIBUTE = "_cost_modes"


@contextmanager
def cost_mode(module: nn.Module, mode: Callable[[], Hashable]) -> Iterator[None]:
    """While open, trackers count calls of `module` once for every value of `mode()`.

    For methods that change what a network does without changing its inputs: blocks skipped on
    some steps (`lambda: context.full`), other weights. Without it the first call stands for all.
    `mode` is asked before every call of `module` and must be cheap. Modes of several methods
    combine.
    """
    module = uncompiled(module)
    modes = module.__dict__.setdefault(_ATTRIBUTE, [])
    modes.append(mode)
    try:
        yield
    finally:
        modes.remove(mode)
        if not modes:
            module.__dict__.pop(_ATTRIBUTE, None)


def current_mode(module: nn.Module) -> tuple[Hashable, ...]:
    return tuple(mode() for mode in module.__dict__.get(_ATTRIBUTE, ()))


def uncompiled(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile(module)`, or the module itself."""
    return getattr(module, "_orig_mod", module)
