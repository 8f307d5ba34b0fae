"""How much what a network computes changes from one denoising step to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .tracker import first_tensor


def relative_change(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """|f_t − f_{t−1}| / |f_t| in L2 over all but the first dimension.

    Args:
        now, before: (B, …) of one shape.

    Returns (B,), float64. 0 where nothing changed, even if all is zero.
    """
    new, old = now.double().flatten(1), before.double().flatten(1)
    difference, size = (new - old).norm(dim=1), new.norm(dim=1)
    return torch.where(difference == 0, difference, difference / size)


class StepChanges:
    """What `observe_steps` has seen: call `begin` before each trajectory, then read `means`."""

    def __init__(self) -> None:
        self._evaluation = -1
        self._runs: dict[str, int] = {}  # of each module in this evaluation
        self._last: dict[tuple[str, int], torch.Tensor] = {}
        self._sums: dict[str, dict[int, tuple[float, int]]] = {}

    def begin(self) -> None:
        """Another trajectory: its first evaluation is compared with nothing."""
        self._evaluation = -1
        self._last.clear()

    def means(self) -> dict[str, list[float]]:
        """Name → mean relative change of evaluation 1, 2, … against the one before.

        The mean is over all samples (guidance branches and trajectories) of the first tensor that
        the module puts out. Modules without features, of two dimensions or fewer, are left out.
        """
        return {
            name: [total / number for _, (total, number) in sorted(sums.items())]
            for name, sums in self._sums.items()
        }

    def _next(self) -> None:
        self._evaluation += 1
        self._runs.clear()

    def _see(self, name: str, out: Any) -> None:
        features = first_tensor(out)
        if features is None or features.dim() < 3 or not features.is_floating_point():
            return
        run = self._runs[name] = self._runs.get(name, -1) + 1
        before = self._last.get((name, run))
        # A copy: what follows may write into it in place.
        self._last[name, run] = features = features.detach().clone()
        if before is None or before.shape != features.shape:
            return
        change = relative_change(features, before)
        sums = self._sums.setdefault(name, {})
        total, number = sums.get(self._evaluation, (0.0, 0))
        sums[self._evaluation] = (total + float(change.sum()), number + len(change))


@contextmanager
def observe_steps(root: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[StepChanges]:
    """Watch how the outputs of `modules` change between evaluations of `root`.

        with observe_steps(unet, {"mid_block": unet.mid_block}) as changes:
            for prompt in prompts:
                changes.begin()
                pipe(prompt)
        changes.means()["mid_block"]

    Keeps one output of each module in memory. A module that runs more than once in an evaluation
    is compared run by run.

    Args:
        modules: name → module of `root`, or `root` itself.
    """
    changes = StepChanges()
    hooks: list[Any] = [root.register_forward_pre_hook(lambda *_: changes._next())]

    def watch(name: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_hook(lambda _, __, out: changes._see(name, out)))

    try:
        for name, module in modules.items():
            watch(name, module)
        yield changes
    finally:
        for hook in hooks:
            hook.remove()
        changes.begin()
