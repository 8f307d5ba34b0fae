"""The step clock: which evaluation of the UNet comes next, in any denoising loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ..cost.modes import uncompiled

_ATTRIBUTE = "_edgegen_step_clock"
_BOUND = "_edgegen_bound"


class StepListener(Protocol):
    """What a method that depends on the step does. All are called between UNet evaluations."""

    def begin_step(self) -> None:
        """The clock stands before another evaluation, or (`running` false) behind the last."""

    def enter_stream(self, key: Hashable) -> None:
        """The evaluations to come belong to the stream `key`, until told otherwise."""


class StepClock:
    """Counts the UNet evaluations of a run. The only source of step state.

    A scheduler drives it (see `step_clock`): `set_timesteps` resets it and `step` advances it, once
    for each evaluation, so that a second-order scheduler counts twice a step. A loop without a
    scheduler calls `reset` and `tick` itself.

    Attributes:
        index: number of the next evaluation in this run, from 0; None before the first `reset`.
        key: the stream that evaluations belong to now; see `stream`.
    """

    def __init__(self) -> None:
        self.index: int | None = None
        self.key: Hashable = None
        self._timesteps: torch.Tensor | Sequence[float] = ()
        self._begin = 0  # img2img leaves out the first timesteps
        self._times: list[float] | None = None
        self._listeners: list[StepListener] = []

    @property
    def total(self) -> int:
        """Evaluations in this run. Known for sure from the first `scale_model_input` on.

        Those that a pipeline leaves out at the end (SDXL's `denoising_end`) are counted.
        """
        return len(self._timesteps) - self._begin

    @property
    def running(self) -> bool:
        """Whether an evaluation may come: after a reset, and until the last one was counted."""
        return self.index is not None and self.index < self.total

    @property
    def time(self) -> float:
        """Timestep of the next evaluation, in training timesteps (mostly 999 to 0).

        Raises:
            RuntimeError: outside a run.
        """
        if self.index is None or not self.running:
            raise RuntimeError("the step clock has no time outside a run: call set_timesteps first")
        if self._times is None:  # one transfer a run, and none if nobody asks
            times = self._timesteps
            self._times = times.tolist() if isinstance(times, torch.Tensor) else list(times)
        return float(self._times[self._begin + self.index])

    def reset(self, timesteps: torch.Tensor | Sequence[float], begin: int = 0) -> None:
        """A new run over `timesteps` (one for each evaluation), from number `begin` on."""
        self._timesteps, self._begin, self._times = timesteps, begin, None
        self.index = 0
        self._announce()

    def tick(self) -> None:
        """An evaluation is over."""
        if self.index is not None:
            self.index += 1
            self._announce()

    @property
    def heard(self) -> bool:
        """Whether a method listens."""
        return bool(self._listeners)

    def listen(self, listener: StepListener) -> Callable[[], None]:
        """Tell `listener` of every step and stream from now on; returns how to stop that."""
        self._listeners.append(listener)
        return functools.partial(self._listeners.remove, listener)

    @contextmanager
    def stream(self, key: Hashable) -> Iterator[None]:
        """While open, evaluations belong to `key` and share nothing with other streams.

        For loops that call the UNet more than once a step: chunks of frames, guidance branches one
        after the other. The same key on every step; streams nest, the innermost counts.
        """
        before = self.key
        self._enter(key)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, key: Hashable) -> None:
        self.key = key
        for listener in tuple(self._listeners):
            listener.enter_stream(key)

    def _announce(self) -> None:
        for listener in tuple(self._listeners):
            listener.begin_step()

    def _start_at(self, begin: int) -> None:
        """Move the start of a run that has just been reset."""
        if begin != self._begin:
            self._begin = begin
            self._announce()


@contextmanager
def step_clock(scheduler: Any) -> Iterator[StepClock]:
    """A clock that a diffusers scheduler drives while this is open.

    Several methods on one scheduler share one clock. `set_timesteps`, `step` and
    `scale_model_input` are wrapped on the instance, with their signatures: pipelines inspect these
    and leave out `generator` or `eta` where they do not find them.

    Args:
        scheduler: any diffusers scheduler; its copying is refused while open, since the copy would
            go on driving this clock and stepping the original.
    """
    driven: _Driven | None = scheduler.__dict__.get(_ATTRIBUTE)
    if driven is None:
        driven = scheduler.__dict__[_ATTRIBUTE] = _Driven(scheduler)
    driven.users += 1
    try:
        yield driven.clock
    finally:
        driven.users -= 1
        if not driven.users:
            del scheduler.__dict__[_ATTRIBUTE]
            driven.release()


@contextmanager
def bound(unet: Any, reason: str, layers: bool = False) -> Iterator[None]:
    """Mark a UNet that other loops than its pipeline's own cannot go through while this is open.

    For methods that count the pipeline's calls themselves; with `layers`, for those that put a
    network of their own in the UNet's place, which only harms what reaches into its layers. Such
    loops ask `bound_by`.
    """
    unet = uncompiled(unet)
    reasons = unet.__dict__.setdefault(_BOUND, [])
    reasons.append((reason, layers))
    try:
        yield
    finally:
        reasons.remove((reason, layers))
        if not reasons:
            unet.__dict__.pop(_BOUND, None)


def bound_by(unet: Any, layers: bool = True) -> str | None:
    """Why a loop of one's own cannot go through this UNet; None where it can.

    Args:
        layers: whether the loop reaches into the UNet's layers.
    """
    found = uncompiled(unet).__dict__.get(_BOUND, ())
    return next((reason for reason, only in found if layers or not only), None)


def undriven(scheduler: Any) -> Any:
    """A copy of a scheduler that shares its settings, and drives no step clock.

    `from_config` would not do: it leaves out what pipelines have changed in the configuration.
    """
    cls = type(scheduler)
    other = object.__new__(cls)
    for name, value in vars(scheduler).items():
        wrapped = callable(value) and hasattr(cls, name)
        if not wrapped and not name.startswith(("__", _ATTRIBUTE)):
            vars(other)[name] = value
    return other


class _Driven:
    """A scheduler's wrapped methods, and the clock that they drive."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.clock = StepClock()
        self.users = 0
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        self._wrap("set_timesteps", after=self._reset)
        self._wrap("step", after=self._tick)
        self._wrap("scale_model_input", before=self._locate)
        self._replace("__deepcopy__", _refuse_copy)

    def _wrap(self, name: str, before: Any = None, after: Any = None) -> None:
        original = getattr(self.scheduler, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if before is not None and self.users:
                before(*args, **kwargs)
            out = original(*args, **kwargs)
            if after is not None and self.users:
                after()
            return out

        self._replace(name, wrapper)

    def _replace(self, name: str, new: Any) -> None:
        self._wrapped[name] = (new, self.scheduler.__dict__.get(name))
        self.scheduler.__dict__[name] = new

    def release(self) -> None:
        for name, (ours, before) in self._wrapped.items():
            if self.scheduler.__dict__.get(name) is not ours:
                continue  # wrapped once more by somebody else: ours only hands on from now on
            del self.scheduler.__dict__[name]
            if before is not None:
                self.scheduler.__dict__[name] = before

    def _reset(self) -> None:
        self.clock.reset(self.scheduler.timesteps)

    def _tick(self) -> None:
        self.clock.tick()

    def _locate(self, sample: Any, timestep: Any = None, **_: Any) -> None:
        """Before the first evaluation: where in the timesteps does the run start (img2img)?"""
        if self.clock.index == 0 and timestep is not None:
            begin = getattr(self.scheduler, "begin_index", None)
            if begin is None:
                begin = _position(timestep, self.scheduler.timesteps)
            self.clock._start_at(begin)


def _position(timestep: Any, timesteps: torch.Tensor) -> int:
    """Index of `timestep` in `timesteps`, which may hold it twice; 0 where it is not in there."""
    if torch.is_tensor(timestep):
        # Loops hand on views: these tell the place exactly, and without waiting for the device.
        first = timesteps.untyped_storage().data_ptr()
        if timestep.untyped_storage().data_ptr() == first and timestep.numel() == 1:
            return int(timestep.storage_offset() - timesteps.storage_offset())
        timestep = timestep.flatten()[0].to(timesteps.device)
    found = (timesteps == timestep).nonzero()
    return int(found[0]) if len(found) else 0


def _refuse_copy(memo: dict[int, Any]) -> None:
    raise RuntimeError(
        "a scheduler cannot be copied while a method is attached to it: copy it before attaching"
    )
