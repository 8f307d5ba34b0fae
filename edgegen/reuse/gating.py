"""T-GATE: after a gate step the text has had its say (Liu et al. 2024, arXiv 2404.02747)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..cost import cost_mode
from ..sampling.steps import StepClock, step_clock
from .cut import check_unet
from .method import find_unet
from .skipping import Forward, replace_forward

_STREAM = "behind the gate"


class Gating:
    """A gate at work on one UNet; made by `gating`.

    Attributes:
        closed: whether the next evaluation lies behind the gate.
        kept: (stream, cross-attention) → its last output before the gate, the mean of both
            guidance branches, (B, tokens, channels).
    """

    def __init__(self, target: Any, gate: int | float, steps: StepClock) -> None:
        self.closed = False
        self.kept: dict[tuple[Hashable, nn.Module], torch.Tensor] = {}
        self._target, self._gate, self._steps = target, gate, steps

    def begin_step(self) -> None:
        """Called by the step clock after a reset and after each evaluation."""
        index = self._steps.index or 0
        if index == 0 or not self._steps.running:
            self.kept.clear()
        self.closed = index >= self.first

    def enter_stream(self, key: Hashable) -> None:
        """Called by the step clock, which knows the stream itself."""

    @property
    def first(self) -> int:
        """The first evaluation behind the gate, counted from 0."""
        return gate_step(self._gate, self._steps.total)

    @property
    def guided(self) -> bool:
        """Whether a batch holds two guidance branches."""
        return bool(getattr(self._target, "do_classifier_free_guidance", True))

    def unet(self, forward: Forward) -> Forward:
        """The UNet, which evaluates one branch behind the gate."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.closed:
                return forward(*args, **kwargs)
            sample = args[0] if args else kwargs["sample"]
            count = len(sample)
            # A stream of its own: what other methods keep of both branches does not fit here.
            with self._steps.stream((_STREAM, self._steps.key)):
                if not self.guided:
                    return forward(*args, **kwargs)
                if count % 2:
                    raise ValueError(
                        f"gating: a batch of {count} does not hold two guidance branches"
                    )
                half = partial(_second_half, count=count)
                out = forward(*map(half, args), **{key: half(v) for key, v in kwargs.items()})
            if isinstance(out, tuple):
                return (_twice(out[0]), *out[1:])
            out.sample = _twice(out.sample)
            return out

        return run

    def attention(self, module: nn.Module, forward: Forward) -> Forward:
        """A cross-attention, whose output is kept until the gate and does for the rest."""

        def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            key = self._steps.key
            if self.closed and (found := self.kept.get((key[1], module))) is not None:  # type: ignore[index]
                return found
            out = forward(hidden_states, *args, **kwargs)
            if not self.closed:
                self.kept[key, module] = sum(out.chunk(2)) / 2 if self.guided else out
            return out

        return run


@contextmanager
def gating(target: Any, gate: int | float = 0.5) -> Iterator[Gating]:
    """From a gate step on, one guidance branch alone, and cross-attention as it last was.

        with gating(pipe, gate=4):
            pipe("a fox", num_inference_steps=8)

    The first `gate` evaluations run as they are. Then cross-attentions give the mean of the two
    branches' outputs of the last evaluation that ran them, and the prediction is that of a single
    branch, without guidance (section 3.3, algorithm 1). Works beside `clockwork`, which then makes
    its next pass a full one. Caching of self-attention, which the authors' package adds, is left
    to other methods.

    Args:
        target: a diffusers pipeline with two guidance branches in one batch, or with none; or
            anything with `unet` and `scheduler`, where two branches are taken for granted.
        gate: evaluations before it, 1 or more; or their share of the run, between 0 and 1.

    Raises:
        ValueError: another gate, a pipeline of three branches, or a UNet without cross-attention.
    """
    gate_step(gate, 1)
    unet, scheduler = find_unet(target)
    check_unet(unet)
    if hasattr(type(target), "image_guidance_scale") or getattr(target, "branches", 0) > 2:
        raise ValueError(
            f"{type(target).__name__} has three guidance branches: gating is for pipelines of two"
        )
    crossed = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    if not crossed:
        raise ValueError(f"{type(unet).__name__} holds no cross-attention that could be gated")
    if scheduler is None:
        raise ValueError("gating: give the pipeline, whose scheduler tells the steps")
    with ExitStack() as stack:
        steps = stack.enter_context(step_clock(scheduler))
        method = Gating(target, gate, steps)
        stack.callback(method.kept.clear)
        replace_forward(stack, unet, method.unet)
        for module in crossed:
            replace_forward(stack, module, _bound(method.attention, module))
        stack.callback(steps.listen(method))
        # The first pass behind the gate is one of its own: nothing is kept for its stream yet.
        stack.enter_context(cost_mode(unet, lambda: (method.closed, steps.index == method.first)))
        yield method


def gate_step(gate: int | float, total: int) -> int:
    """Evaluations before the gate in a run of `total`, for a number of them or a share.

    Raises ValueError for neither.
    """
    number = isinstance(gate, int) and not isinstance(gate, bool) and gate >= 1
    if not number and not (isinstance(gate, float) and 0 < gate < 1):
        raise ValueError(
            f"gate={gate}: must be a whole number of evaluations from 1, or a share between 0 and 1"
        )
    return int(gate) if number else max(1, round(gate * total))


def _bound(
    make: Callable[[nn.Module, Forward], Forward], module: nn.Module
) -> Callable[[Forward], Forward]:
    return partial(make, module)


def _second_half(value: Any, count: int) -> Any:
    """Of all tensors with the batch in front, the branch that follows the prompt."""
    if isinstance(value, torch.Tensor):
        return value[count // 2 :] if value.dim() and len(value) == count else value
    if isinstance(value, dict):
        return {key: _second_half(each, count) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_second_half(each, count) for each in value)
    return value


def _twice(value: torch.Tensor) -> torch.Tensor:
    # So that guidance, which takes the difference of both, changes nothing.
    return torch.cat([value, value])
