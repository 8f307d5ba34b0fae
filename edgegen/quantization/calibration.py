"""Calibration calls: what the networks of a pipeline are called with in its own runs."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..cost.modes import uncompiled
from .spec import CalibrationSpec


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


class Recorder:
    """Calls kept by bins of timesteps, so many from each, drawn evenly from all that came.

    Attributes:
        bins: equal parts of the training timesteps.
        limit: calls that are kept from each; networks without timesteps are a bin of their own.
    """

    def __init__(self, bins: int = 10, limit: int = 16, timesteps: int = 1000) -> None:
        self.bins, self.limit, self.timesteps = bins, limit, timesteps
        self._kept: dict[tuple[str, int], list[Call]] = {}
        self._came: dict[tuple[str, int], int] = {}
        self._random = random.Random(0)

    @property
    def calls(self) -> list[Call]:
        """All that are kept, by network and from the last timestep (noise) to the first."""
        found = [call for calls in self._kept.values() for call in calls]
        return sorted(found, key=lambda call: (call.path, -(call.time or 0.0)))

    def add(self, path: str, args: Any, kwargs: Any, time: float | None) -> None:
        """Keep a copy of a call, in place of another where its bin is full (reservoir sampling)."""
        number = -1 if time is None else min(int(time * self.bins / self.timesteps), self.bins - 1)
        key = (path, number)
        kept, came = self._kept.setdefault(key, []), self._came.get(key, 0)
        self._came[key] = came + 1
        place = came if came < self.limit else self._random.randint(0, came)
        if place < self.limit:
            kept[place : place + 1] = [Call(_copied(args), _copied(kwargs), time, path)]


@contextmanager
def record_calls(
    target: Any, parts: Iterable[str] = ("unet",), bins: int = 10, limit: int = 16
) -> Iterator[Recorder]:
    """Record calls while a pipeline runs, stratified over timesteps; read `calls` afterwards.

        with record_calls(pipe) as recorder:
            pipe(["a fox", "a pear"], num_inference_steps=20)
        with quantized(pipe, "w8a8", calls=recorder.calls): ...

    Args:
        target: a pipeline, or its UNet.
        parts: networks to watch; of an autoencoder each half.
        bins, limit: see `Recorder`.
    """
    config = getattr(getattr(target, "scheduler", None), "config", {})
    recorder = Recorder(bins, limit, config.get("num_train_timesteps", 1000))
    with ExitStack() as stack:
        for path, module in watched(target, parts):
            hook = module.register_forward_pre_hook(_note(recorder, path), with_kwargs=True)
            stack.callback(hook.remove)
        yield recorder


def draw_calls(pipe: Any, parts: Sequence[str], settings: CalibrationSpec) -> list[Call]:
    """Calls of runs that the pipeline makes itself, with a scheduler and noise of its own.

    Raises:
        ValueError: it cannot run on prompts alone.
    """
    taken = inspect.signature(pipe.__call__).parameters if callable(pipe) else {}
    if "prompt" not in taken or "image" in taken or isinstance(pipe, nn.Module):
        raise ValueError(
            f"{type(pipe).__name__} makes no calibration calls from prompts alone: give calls= "
            "(see record_calls), or choose activations.dynamic=true and rounding=nearest"
        )
    prompts = list(settings.prompts)
    options: dict[str, Any] = {}
    if settings.guidance is not None:
        options["guidance_scale"] = settings.guidance
    if "vae" not in parts:
        options["output_type"] = "latent"
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config)
    try:
        with record_calls(pipe, parts, bins=1, limit=sys.maxsize) as recorder, torch.no_grad():
            pipe(
                prompt=prompts,
                num_inference_steps=settings.steps,
                generator=[
                    torch.Generator().manual_seed(settings.seed + number)
                    for number in range(len(prompts))
                ],
                **options,
            )
    finally:
        pipe.scheduler = own
    return recorder.calls


def run_calls(target: Any, calls: Iterable[Call], before: Callable[[Call], None]) -> None:
    """Make all calls again, without gradients; `before` is told of each."""
    with torch.no_grad():
        for call in calls:
            before(call)
            network(target, call.path)(*call.args, **call.kwargs)


def network(target: Any, path: str) -> nn.Module:
    """The network that a call is of.

    Raises:
        ValueError: there is none of that name.
    """
    part, _, rest = path.partition(".")
    module = target if isinstance(target, nn.Module) and part == "unet" else None
    module = getattr(target, part, None) if module is None else module
    try:
        return uncompiled(module).get_submodule(rest)  # type: ignore[arg-type]
    except AttributeError as error:
        raise ValueError(f"a calibration call of {path}, which is not there") from error


def watched(target: Any, parts: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """(path, network) of what is called by itself: an autoencoder's halves are."""
    for part in parts:
        whole = target if isinstance(target, nn.Module) else getattr(target, part, None)
        if not isinstance(whole, nn.Module):
            continue
        inner = uncompiled(whole)
        if hasattr(inner, "encode") and hasattr(inner, "decode"):
            yield from ((f"{part}.{name}", child) for name, child in inner.named_children())
        else:
            yield part, whole


def _note(recorder: Recorder, path: str) -> Callable[[nn.Module, Any, Any], None]:
    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        time = None
        if path == "unet":
            given = args[1] if len(args) > 1 else kwargs["timestep"]
            time = float(torch.as_tensor(given).flatten()[0])
        recorder.add(path, args, kwargs, time)

    return note


def _copied(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, tuple | list):
        return type(tree)(map(_copied, tree))
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return tree
