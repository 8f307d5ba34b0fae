"""The front door: `load`, which knows every checkpoint format, and `apply`, every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from .pipelines import load as pipelines_load
from .quantization import (
    attach_steps,
    executed,
    is_quantized,
    load_quantized,
    quantize_,
    quantized,
    torchao_quantized,
)
from .reuse import clockwork, deepcache, faster_diffusion
from .reuse.gating import gating
from .reuse.peers import deepcache_package, tgate_package
from .video import VideoEditor

__all__ = [
    "Method",
    "VideoEditor",
    "apply",
    "clockwork",
    "deepcache",
    "faster_diffusion",
    "gating",
    "load",
    "quantize_",
    "quantized",
]

Method = Callable[[Any], AbstractContextManager[Any]]
"""What makes a pipeline cheaper while a `with` block is open, such as `clockwork`."""

# What a method takes hold of, in the order in which methods are entered.
_SEAMS: dict[Any, str] = {
    quantized: "weights",
    torchao_quantized: "weights",
    executed: "graph",
    clockwork: "steps",
    deepcache: "steps",
    faster_diffusion: "steps",
    deepcache_package: "steps",
    tgate_package: "steps",
}
# Both halve the batch, or keep features of both branches.
_UNGATED = (deepcache_package, tgate_package)
_ORDER = ("weights", "graph", "attention", "steps")


@wraps(pipelines_load.load)
def load(source: str | Path, **options: Any) -> Any:
    pipe = pipelines_load.load(source, reader=_read_quantized, **options)
    attach_steps(pipe)
    return pipe


def _read_quantized(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    return load_quantized(kind, folder, dtype) if is_quantized(folder) else None


@contextmanager
def apply(target: Any, methods: Mapping[str, Method]) -> Iterator[dict[str, Any]]:
    """All of `methods` at work on one pipeline, entered in an order that they can bear.

        with edgegen.apply(pipe, {"clockwork": partial(edgegen.clockwork, clock=3)}):
            pipe("a fox", num_inference_steps=8)

    Args:
        target: a diffusers pipeline.
        methods: name → function of the target that gives a context manager. Methods that swap
            weights come first, then those that replace attention, then those that skip blocks;
            in each group, and for functions of one's own (last), the order given counts.

    Yields name → what the method's context manager gives.

    Raises:
        ValueError: what is no function of a pipeline; two methods that both decide which blocks
            run, gating beside a package that counts on both guidance branches, or one beside
            another that runs a graph of its own, named; or what a method raises.
    """
    if not isinstance(methods, Mapping) or not all(map(callable, methods.values())):
        raise ValueError(
            f"methods={methods!r}: give names with functions of a pipeline, as in "
            "{'clockwork': functools.partial(edgegen.clockwork, clock=3)}"
        )
    functions = {name: _function(method) for name, method in methods.items()}
    seams = {name: _SEAMS.get(function) for name, function in functions.items()}
    steps = [name for name, seam in seams.items() if seam == "steps"]
    if len(steps) > 1:
        raise ValueError(
            f"{steps[0]} and {steps[1]} cannot be combined: both decide which blocks run on a step"
        )
    gates = [name for name, function in functions.items() if function is gating]
    if gates and (peer := next((n for n, f in functions.items() if f in _UNGATED), None)):
        raise ValueError(
            f"{gates[0]} and {peer} cannot be combined: the package counts on both guidance "
            "branches in every call"
        )
    graphs = [name for name, seam in seams.items() if seam == "graph"]
    if graphs and len(methods) > 1:
        other = next(name for name in methods if name != graphs[0])
        raise ValueError(
            f"{graphs[0]} and {other} cannot be combined: {graphs[0]} runs a graph of its own"
        )
    ranks = {name: _ORDER.index(seam) if seam else len(_ORDER) for name, seam in seams.items()}
    with ExitStack() as stack:
        ordered = sorted(methods, key=ranks.__getitem__)
        yield {name: stack.enter_context(methods[name](target)) for name in ordered}


def _function(method: Any) -> Any:
    while hasattr(method, "func"):  # functools.partial
        method = method.func
    return method
