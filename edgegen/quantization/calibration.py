"""Calibration calls: what the networks of a pipeline are called with in its own runs."""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..cost.modes import uncompiled
from ..pipelines.digests import pipeline_digest
from ..pipelines.schedulers import scheduler_config
from ..sampling.generate import default_guidance, default_size, read_image
from ..sampling.guidance import call_guidance
from .calls import Call, kept_calls
from .spec import CalibrationSpec


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

    With `settings.store` they are made once for a pipeline, its parts and these settings.

    Raises:
        ValueError: it cannot run on prompts, or on prompts and pictures.
        FileNotFoundError: no such picture.
    """
    _check_runs(pipe, settings)
    pictures = _pictures(pipe, settings)
    make = partial(_draw, pipe, parts, settings, pictures)
    if settings.store is None:
        return make()
    return kept_calls(settings.store, about_calls(pipe, parts, settings), make, pipe.device)


def about_calls(pipe: Any, parts: Sequence[str], settings: CalibrationSpec) -> dict[str, Any]:
    """All that the result of `draw_calls` depends on; it raises what that does."""
    _check_runs(pipe, settings)
    pictures = _pictures(pipe, settings)
    return {
        "pipeline": pipeline_digest(pipe),
        "class": type(pipe).__name__,
        "scheduler": [type(pipe.scheduler).__name__, scheduler_config(pipe.scheduler)],
        "parts": sorted(parts),
        "settings": asdict(replace(settings, images=(), store=None)),
        "pictures": [hashlib.sha256(each.tobytes()).hexdigest() for each in pictures],
        "versions": [torch.__version__, version("diffusers")],
    }


def _check_runs(pipe: Any, settings: CalibrationSpec) -> None:
    taken = inspect.signature(pipe.__call__).parameters if callable(pipe) else {}
    if "prompt" not in taken or isinstance(pipe, nn.Module):
        raise ValueError(
            f"{type(pipe).__name__} makes no calibration calls from prompts alone: give calls= "
            "(see record_calls), or choose activations.dynamic=true and rounding=nearest"
        )
    if "image" in taken and not settings.images:
        raise ValueError(
            f"{type(pipe).__name__} edits pictures: give calibration.images, or calls= "
            "(see record_calls)"
        )
    if settings.images and "image" not in taken:
        raise ValueError(f"calibration.images: {type(pipe).__name__} edits no pictures")


def _pictures(pipe: Any, settings: CalibrationSpec) -> list[Image.Image]:
    """One a prompt, of the size that the pipeline was trained for; none without `images`."""
    found = []
    for path in settings.images[: len(settings.prompts)]:
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"calibration.images: {path}: no such file")
        try:
            found.append(read_image(str(file), *default_size(pipe)))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"calibration.images: {path}: damaged, or no picture") from error
    count = len(settings.prompts) if found else 0
    return [found[number % len(found)] for number in range(count)]


def _draw(
    pipe: Any, parts: Sequence[str], settings: CalibrationSpec, pictures: Sequence[Image.Image]
) -> list[Call]:
    options: dict[str, Any] = {"image": list(pictures)} if pictures else {}
    if "vae" not in parts:
        options["output_type"] = "latent"
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config)
    try:
        with ExitStack() as stack:
            if settings.guidance is not None or settings.image_guidance is not None or pictures:
                scale = settings.guidance
                scale = default_guidance(pipe) if scale is None else scale
                # Before the calls are watched, since it may add to what the UNet takes.
                options |= stack.enter_context(call_guidance(pipe, scale, settings.image_guidance))
            recorder = stack.enter_context(record_calls(pipe, parts, bins=1, limit=sys.maxsize))
            stack.enter_context(torch.no_grad())
            pipe(
                prompt=list(settings.prompts),
                num_inference_steps=settings.steps,
                generator=[
                    torch.Generator().manual_seed(settings.seed + number)
                    for number in range(len(settings.prompts))
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
