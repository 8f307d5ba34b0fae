"""The features at a cut, as a UNet computes them: what adaptors are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from .context import Context
from .cut import Stage, check_unet
from .method import find_unet
from .skipping import attach


class Observation:
    """What crossed the cut in the UNet's last evaluation; see `observe`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def r_in(self) -> torch.Tensor:
        """Features into the part that reuse leaves out, (B, C, H, W)."""
        return self._seen(self._context.slot.r_in)

    @property
    def r_out(self) -> torch.Tensor:
        """Features out of it, (B, C', H', W')."""
        value = self._context.slot.sites[0].value
        return self._seen(value[0] if value else None)

    @property
    def time(self) -> torch.Tensor:
        """The UNet's embedding of the timestep, (B, D)."""
        return self._seen(self._context.slot.time)

    @property
    def text(self) -> Any:
        """The text features it attends to, (B, T, D); None where nothing below the cut does."""
        return self._context.slot.text

    def _seen(self, tensor: torch.Tensor | None) -> torch.Tensor:
        if tensor is None:
            raise RuntimeError("no features yet: the UNet has not run since they are observed")
        return tensor


@contextmanager
def observe(
    target: Any,
    cut: Stage | None = None,
    exchange: Callable[[Observation], torch.Tensor] | None = None,
) -> Iterator[Observation]:
    """Watch the features at a cut, of full evaluations without any clock.

        with observe(unet, Stage(1)) as seen:
            unet(sample, timestep, text)
            seen.r_in, seen.r_out, seen.time, seen.text

    Args:
        target: a pipeline with a UNet, or a UNet. Nothing else may be attached to it.
        exchange: called in each evaluation when all is known; what it returns goes on in place of
            r_out. So one evaluation gives the true r_out and the output that a prediction leads to.

    Raises:
        ValueError: as `reuse` does.
        RuntimeError: features are asked for before any evaluation.
    """
    unet, _ = find_unet(target)
    check_unet(unet)
    context = Context(keeps=frozenset({"r_in", "time", "text"}))
    seen = Observation(context)
    if exchange is not None:
        context.exchange = partial(exchange, seen)
    with ExitStack() as stack:
        stack.callback(context.clear)
        attach(stack, unet, cut or Stage(), context)
        yield seen
