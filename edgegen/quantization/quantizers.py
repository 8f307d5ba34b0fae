"""Quantizers of activations: static with calibrated scales, or dynamic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NoReturn

import torch
from torch import nn

from ..sampling.steps import StepClock
from .grids import Grid, fake_quantize
from .ranges import scales_of

GRANULARITIES = ("tensor", "token")


class Precise(nn.Module):
    """A module whose buffers go to other devices, but never to another floating-point dtype."""

    def persist(self) -> None:
        """From now on its buffers are part of the state_dict."""
        self._non_persistent_buffers_set.clear()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        before = {name: b for name, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class Period(nn.Module):
    """Which group of timesteps the evaluation to come belongs to; shared by all quantizers.

    A listener of the step clock (`follow`), or set by hand (`at`). Groups divide the training
    timesteps evenly; group 0 holds timestep 0.

    Args:
        groups: how many.
        timesteps: of training, from the scheduler's configuration.
    """

    index: torch.Tensor

    def __init__(self, groups: int, timesteps: int = 1000) -> None:
        super().__init__()
        self.groups = groups
        self.timesteps = timesteps
        self.open = False
        self._clock: StepClock | None = None
        # A tensor, so that compiled and exported graphs are the same for all groups.
        self.register_buffer("index", torch.zeros(1, dtype=torch.long), persistent=False)

    def group(self, time: float) -> int:
        """The group, from 0, of a timestep."""
        return min(max(int(time * self.groups / self.timesteps), 0), self.groups - 1)

    def at(self, time: float) -> None:
        """The next evaluations are at this timestep, until told otherwise."""
        self.index.fill_(self.group(time))
        self.open = True

    def follow(self, clock: StepClock) -> Callable[[], None]:
        """Do as the clock says from now on; returns how to stop that."""
        stop = clock.listen(self)
        self._clock = clock
        self.begin_step()
        return functools.partial(self._leave, stop)

    def _leave(self, stop: Callable[[], None]) -> None:
        stop()
        self._clock = None

    def begin_step(self) -> None:
        """Called by the step clock after a reset and after each evaluation."""
        assert self._clock is not None
        if self._clock.running:
            self.at(self._clock.time)
        else:
            self.open = False

    def enter_stream(self, key: Hashable) -> None:
        """Called by the step clock: the timestep is the same in all streams."""

    def check(self) -> None:
        """Raises RuntimeError where no run tells the timestep."""
        if not self.open:
            raise RuntimeError(
                "activation scales by timestep are known within a run only: the scheduler's "
                "set_timesteps begins one, and it must be the scheduler from before quantizing"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise RuntimeError(
            "a model quantized by groups of timesteps cannot be copied: copy it before quantizing"
        )


class StaticQuantizer(Precise):
    """Quantizes by scales that calibration found.

    Args:
        grid: of the integers.
        scale, zero_point: float32 (groups of timesteps, parts); no zero point on symmetric grids.
        axis: of the channels, where there are two parts.
        split: channels of the first part: the skip connection joined behind it has a scale of its
            own (Q-Diffusion, arXiv 2302.04304, section 3.3.1). None for one part.
        period: tells the group of timesteps; None for one group.

    Shape: any, and back.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None

    def __init__(
        self,
        grid: Grid,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        axis: int = -1,
        split: int | None = None,
        period: Period | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.axis, self.split, self.period = grid, axis, split, period
        self.register_buffer("scale", scale.float(), persistent=False)
        point = None if zero_point is None else zero_point.float()
        self.register_buffer("zero_point", point, persistent=False)

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def stored_bytes(self) -> int:
        """Of the scales and zero points."""
        return self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, zero_point = self._now(self.scale), self._now(self.zero_point)
        assert scale is not None
        if self.split is None:
            return fake_quantize(x, scale, zero_point, self.grid)
        parts = x.split([self.split, x.shape[self.axis] - self.split], dim=self.axis)
        points = (None, None) if zero_point is None else zero_point.split(1)
        done = map(fake_quantize, parts, scale.split(1), points, (self.grid, self.grid))
        return torch.cat(list(done), dim=self.axis)

    def _now(self, scales: torch.Tensor | None) -> torch.Tensor | None:
        if scales is None or self.period is None:
            return None if scales is None else scales[0]
        self.period.check()
        return scales.index_select(0, self.period.index)[0]

    def extra_repr(self) -> str:
        groups, parts = self.scale.shape
        times = f", {groups} groups of timesteps" if groups > 1 else ""
        return f"{self.bits} bits, static{times}{', split' if parts > 1 else ''}"


class DynamicQuantizer(nn.Module):
    """Quantizes by the range that it meets.

    Args:
        grid: of the integers.
        axes: over which the range is taken: None for the whole tensor, (-1,) for a token, (1, 2, 3)
            for a sample of a convolution, whose windows mix tokens.

    Shape: any, and back.
    """

    def __init__(self, grid: Grid, axes: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.grid, self.axes = grid, axes
        self.stored_bytes = 0

    @property
    def bits(self) -> int:
        return self.grid.bits

    def persist(self) -> None:
        """There is nothing to keep."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x.detach()
        axes = tuple(range(x.dim())) if self.axes is None else self.axes
        low, high = seen.amin(axes, keepdim=True), seen.amax(axes, keepdim=True)
        return fake_quantize(x, *scales_of(low, high, self.grid), self.grid)

    def extra_repr(self) -> str:
        what = "tensor" if self.axes is None else "token" if self.axes == (-1,) else "sample"
        return f"{self.bits} bits, dynamic, {what}"


Quantizer = StaticQuantizer | DynamicQuantizer
