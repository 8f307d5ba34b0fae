"""Reuse of features across denoising steps: a cut, a clock and a predictor."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from ..cost import cost_mode
from ..cost.modes import uncompiled
from ..sampling.steps import StepClock, step_clock
from .adaptor import SHARES, embedded_adaptors, load_adaptor, make_adaptor
from .clock import Clock, Drift, Moment, parse_clock, planned
from .context import Context, Slot
from .cut import Cut, Encoder, check_unet
from .predictor import Extrapolation
from .skipping import attach, site_count

ORDERS = {"identity": 0, "linear": 1, "quadratic": 2}
Predictor = Extrapolation | nn.Module


class Reuse:
    """A reuse method at work on one UNet; made by `reuse` and its namesakes.

    Attributes:
        steps: the clock that drives it. Loops that call the UNet more than once a step keep the
            calls apart by `with reuse.steps.stream(key)`; loops without a scheduler call
            `reuse.steps.reset(timesteps)` and `reuse.steps.tick()`.
        unet: what it is attached to, not compiled.
        passes: for each step of the run so far, and the one to come, whether it is a full one.
        predictor: the extrapolation, or the adaptor.
    """

    def __init__(
        self, target: Any, cut: Cut, clock: Clock, predictor: Predictor, steps: StepClock
    ) -> None:
        self.steps = steps
        self.passes: list[bool] = []
        self.predictor = predictor
        self._target = target
        self.unet, self._scheduler = find_unet(target)
        self._clock = clock
        self._extrapolation: Extrapolation | None = None
        if isinstance(predictor, Extrapolation) and predictor.order:
            self._extrapolation = predictor  # the identity leaves the last value where it is
        adaptor = predictor if isinstance(predictor, nn.Module) else None
        keeps: frozenset[str] = getattr(adaptor, "inputs", frozenset())
        keeps |= {"r_in"} if isinstance(clock, Drift) else set()
        self.context = Context(site_count(self.unet, cut), keeps, adaptor, self._refuse)
        self._slots: dict[Hashable, Slot] = {}
        self._time = 0.0  # timestep of the evaluation to come
        self._moved: float | None = None  # by which r_in moved in the last step
        self._drift = 0.0  # by which it has moved since the last full pass
        self._told = False  # that the adaptor was trained for other runs

    def begin_step(self) -> None:
        """Called by the step clock after a reset and after each evaluation."""
        steps = self.steps
        if steps.index == 0:
            self._slots.clear()
            self.passes.clear()
            self._moved = None
            self._place_adaptor()
        else:
            self._record()
        if not steps.running:
            self._slots.clear()
        else:
            if steps.index == 1:  # from here on the number of steps is known
                self._tell_of_other_steps()
            self.passes.append(self._decide())
            if self._extrapolation is not None:
                self._time = steps.time
        for slot in self._slots.values():
            slot.open = steps.running
        self.enter_stream(steps.key)

    def enter_stream(self, key: Hashable) -> None:
        """Called by the step clock when a stream is entered or left."""
        if key not in self._slots:
            self._slots[key] = self.context.new_slot(self.steps.running)
        slot = self._slots[key]
        # A stream that appears within a run has nothing to reuse yet.
        slot.full = not slot.filled or not self.passes or self.passes[-1]
        if not slot.full and self._extrapolation is not None:
            for site in slot.sites:
                site.value = self._extrapolation.at(site.past, self._time)
        self.context.slot = slot
        self.context.full = slot.full

    def release(self) -> None:
        """Forget all features, and let no further evaluation pass."""
        self._slots.clear()
        self.context.clear()

    def _decide(self) -> bool:
        """Whether the evaluation to come is a full pass."""
        step = self.steps.index
        if not step or True not in self.passes:  # none where it was attached within a run
            return True
        since = 1 + self.passes[::-1].index(True)
        drift = None if self._moved is None else self._drift + self._moved
        return self._clock.full(Moment(step, self.steps.total, since, drift))

    def _record(self) -> None:
        """Take note of the evaluation that is over."""
        ran = [slot for slot in self._slots.values() if not slot.open]
        for slot in ran:
            slot.filled = True
            if slot.full and self._extrapolation is not None:
                for site in slot.sites:
                    self._extrapolation.remember(site.past, self._time, site.value)
        if isinstance(self._clock, Drift):
            self._measure(ran)

    def _measure(self, ran: list[Slot]) -> None:
        moves = [move for slot in ran if (move := _move(slot)) is not None]
        self._moved = max(moves, default=None)
        reused = bool(self.passes) and not self.passes[-1]
        self._drift = self._drift + (self._moved or 0.0) if reused else 0.0
        for slot in ran:
            slot.before = slot.r_in

    def _place_adaptor(self) -> None:
        """Bring the adaptor to where the UNet will run, which `.to` and offloading may change."""
        if isinstance(self.predictor, nn.Module):
            device = getattr(self._target, "_execution_device", self.unet.device)
            self.predictor.to(device, self.unet.dtype)

    def _tell_of_other_steps(self) -> None:
        trained: Any = getattr(self.predictor, "trained", None)
        if not trained or self._told or trained["steps"] == self.steps.total:
            return
        self._told = True
        warnings.warn(
            f"the adaptor was trained for runs of {trained['steps']} evaluations: in one of "
            f"{self.steps.total} it may predict worse than the identity",
            stacklevel=2,
        )

    def _refuse(self) -> NoReturn:
        scheduler = getattr(self._target, "scheduler", None)
        if scheduler is not self._scheduler:
            raise RuntimeError(
                "the scheduler was exchanged while a reuse method was attached: choose it before "
                "attaching"
            )
        if not self.steps.running:
            raise RuntimeError(
                "the UNet was called outside a run: the scheduler's set_timesteps begins one "
                "(without a scheduler, steps.reset), and after its last step it is over"
            )
        raise RuntimeError(
            "the UNet was called twice without a step in between: finish the step with the "
            "scheduler's step, or tell calls of one step apart by `with steps.stream(key)`"
        )


def _move(slot: Slot) -> float | None:
    """‖r_in(t) − r_in(t+1)‖ / ‖r_in(t+1)‖, where both are known."""
    now, before = slot.r_in, slot.before
    if now is None or before is None:
        return None
    if now.is_meta:
        raise ValueError(
            "clock drift: it decides by what the features hold, which meta tensors do not; count a "
            "clock that is known beforehand"
        )
    now, before = now.detach().float(), before.detach().float()
    return float((now - before).norm() / before.norm().clamp_min(1e-12))


@contextmanager
def reuse(target: Any, cut: Cut, clock: Any, predictor: Any = "identity") -> Iterator[Reuse]:
    """Reuse features across the denoising steps of a UNet while this is open.

    Works in diffusers' own pipelines, in loops of one's own and in training, compiled or not. It
    resets itself at every `set_timesteps`. On exit the UNet is as it was before.

    Args:
        target: a diffusers pipeline with a UNet of the Stable Diffusion family; anything else with
            `unet` and `scheduler`; or the UNet alone, whose loop then drives `steps` by hand.
        cut: what reuse steps leave out: a `Stage`, a `Branch` or the `Encoder`.
        clock: when to run in full: see `clock.ALLOWED`, or a `Clock`.
        predictor: what to put in place of what was left out. `identity`, `linear`, `quadratic`;
            `learned` for the adaptor that the package holds for an embedded model, the one trained
            for this clock if there is one; the path of a trained one; `resnet` or `light` for an
            untrained one; a module that is one (see `ResNetAdaptor`), which is brought to the
            UNet's device and precision; or an `Extrapolation`.

    Warns of an adaptor that was trained for full passes at other steps, and, when a run has begun,
    of one that was trained for runs of another length.

    Raises:
        ValueError: a transformer or another network without such blocks, a cut, clock or predictor
            that does not fit it, or a UNet that a reuse method is attached to already.
        FileNotFoundError: no adaptor at the path.
        RuntimeError: within, when the UNet is called before `set_timesteps`, twice in a step
            without `steps.stream`, or with another batch size in the same run; when the scheduler
            was exchanged; when the model or the scheduler is copied.
    """
    unet, scheduler = find_unet(target)
    check_unet(unet)
    clock = parse_clock(clock)
    found = _parse_predictor(predictor, unet, cut, clock)
    if isinstance(cut, Encoder) and (isinstance(found, nn.Module) or isinstance(clock, Drift)):
        raise ValueError(
            "the cut at the encoder leaves no features before it, which learned predictors and the "
            "clock by drift need"
        )
    _tell_of_another_clock(found, clock)
    with ExitStack() as stack:
        steps = stack.enter_context(step_clock(scheduler)) if scheduler else StepClock()
        method = Reuse(target, cut, clock, found, steps)
        stack.callback(method.release)
        attach(stack, unet, cut, method.context)
        stack.callback(steps.listen(method))
        stack.enter_context(cost_mode(unet, lambda: method.context.full))
        yield method


def find_unet(target: Any) -> tuple[Any, Any]:
    """The UNet (uncompiled) and the scheduler of a pipeline, or (UNet, None).

    Raises:
        ValueError: neither a pipeline with a UNet nor a network.
    """
    if isinstance(target, nn.Module):
        return uncompiled(target), None
    name = type(target).__name__
    unet, scheduler = getattr(target, "unet", None), getattr(target, "scheduler", None)
    if isinstance(unet, nn.Module):
        if scheduler is None:
            raise ValueError(f"{name} has no scheduler, which tells the steps")
        return uncompiled(unet), scheduler
    if isinstance(getattr(target, "transformer", None), nn.Module):
        raise ValueError(
            f"{name} is built on a transformer, which has no levels to cut: features are reused in "
            "UNets (SD 1.x, SD 2.x, SDXL, InstructPix2Pix) for now"
        )
    raise ValueError(f"{name} has no UNet whose features could be reused")


def _tell_of_another_clock(predictor: Predictor, clock: Clock) -> None:
    if not _trained_for(predictor, clock):
        trained: Any = predictor.trained  # type: ignore[union-attr]
        warnings.warn(
            f"the adaptor was trained for full passes at steps {trained['full']} of "
            f"{trained['steps']}: under another clock it may predict worse than the identity",
            stacklevel=4,
        )


def _trained_for(predictor: Predictor, clock: Clock) -> bool:
    """Whether full passes come where they came in training; true where nothing is known of that."""
    trained = getattr(predictor, "trained", None)
    if not trained or isinstance(clock, Drift):
        return True
    passes = enumerate(planned(clock, trained["steps"]), start=1)
    return [step for step, full in passes if full] == trained["full"]


def _parse_predictor(predictor: Any, unet: Any, cut: Cut, clock: Clock) -> Predictor:
    if isinstance(predictor, Extrapolation | nn.Module):
        return predictor
    if isinstance(predictor, str):
        if predictor in ORDERS:
            return Extrapolation(ORDERS[predictor])
        if predictor in SHARES:
            return make_adaptor(unet, cut, predictor).eval().requires_grad_(False)
        if predictor == "learned":
            held = embedded_adaptors(unet, cut)
            return next((each for each in held if _trained_for(each, clock)), held[0])
    if isinstance(predictor, Path) or str(predictor).endswith(".safetensors"):
        return load_adaptor(predictor, unet, cut)
    raise ValueError(
        f"predictor={predictor}: allowed are {', '.join((*ORDERS, *SHARES))}, learned or the "
        "path of a trained adaptor (.safetensors)"
    )
