"""The features of each level of a UNet's decoder: how they move from step to step, and what the
picture makes of noise in them. The premise of Clockwork Diffusion (arXiv 2312.08128, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..sampling.steps import step_clock
from .cut import check_unet
from .method import find_unet

Visit = Callable[[int, int, Tensor], Tensor | None]
"""(level, evaluation, features (B, C, H, W)) → what goes on in their place; None: themselves."""


@contextmanager
def visit_levels(pipe: Any, visit: Visit) -> Iterator[int]:
    """Call `visit` with the features of every level at every evaluation; yields their number.

    Level 0 is the highest resolution. Its features are what the decoder's block there hands on,
    before its upsampler: those of level l ≥ 1 are r_out of `Stage(l)`.

    Args:
        pipe: anything with a UNet of Stable Diffusion's blocks and a scheduler.

    Raises:
        ValueError: another network, or no scheduler.
    """
    unet, scheduler = find_unet(pipe)
    check_unet(unet)
    if scheduler is None:
        raise ValueError(f"{type(pipe).__name__} has no scheduler, which tells the steps")
    blocks = list(unet.up_blocks)
    with ExitStack() as stack:
        clock = stack.enter_context(step_clock(scheduler))

        def seen(level: int, features: Tensor) -> Tensor | None:
            return visit(level, clock.index or 0, features)

        for level, block in enumerate(reversed(blocks)):
            if block.upsamplers:
                handle = block.upsamplers[0].register_forward_pre_hook(_before(seen, level))
            else:
                handle = block.register_forward_hook(_after(seen, level))
            stack.callback(handle.remove)
        yield len(blocks)


class LevelMoves:
    """How far each level's features move: ‖r(t) − r(t+1)‖ / ‖r(t+1)‖, sample by sample.

    moves = LevelMoves()
    with visit_levels(pipe, moves):
        pipe(...)
    moves.mean()
    """

    def __init__(self) -> None:
        self._before: dict[int, Tensor] = {}
        self._found: dict[tuple[int, int], list[Tensor]] = {}

    def __call__(self, level: int, step: int, features: Tensor) -> None:
        now = features.detach().float().flatten(1)
        if step > 0:
            before = self._before[level]
            move = (now - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
            self._found.setdefault((level, step), []).append(move.cpu())
        self._before[level] = now

    def mean(self) -> list[list[float]]:
        """[level][step], the mean over samples and guidance branches; NaN at step 0."""
        levels = 1 + max(level for level, _ in self._found)
        steps = 1 + max(step for _, step in self._found)
        table = [[float("nan")] * steps for _ in range(levels)]
        for (level, step), moves in self._found.items():
            table[level][step] = float(torch.cat(moves).mean())
        return table


class LevelNoise:
    """Normal noise on one level's features at one evaluation, for use with `visit_levels`.

    Args:
        level, step: where; the step counts from 0.
        sigma: root mean square of the noise as a share of the features' own, sample by sample.
        generators: one a picture, on the CPU. All guidance branches of a picture get the same
            noise, as they would age alike; guidance would blow up what differs between them.
    """

    def __init__(
        self, level: int, step: int, sigma: float, generators: Sequence[torch.Generator]
    ) -> None:
        self.level, self.step, self.sigma, self.generators = level, step, sigma, generators

    def __call__(self, level: int, step: int, features: Tensor) -> Tensor | None:
        if (level, step) != (self.level, self.step):
            return None
        shape, count = features.shape[1:], len(self.generators)
        if len(features) % count:
            raise ValueError(f"{count} generators for a batch of {len(features)}")
        noise = torch.stack([torch.randn(shape, generator=each) for each in self.generators])
        noise = noise.repeat(len(features) // count, 1, 1, 1).to(features)
        size = features.float().square().mean((1, 2, 3), keepdim=True).sqrt().to(features.dtype)
        return features + self.sigma * size * noise


def _before(seen: Callable[[int, Tensor], Tensor | None], level: int) -> Callable[..., Any]:
    def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = seen(level, inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    return hook


def _after(seen: Callable[[int, Tensor], Tensor | None], level: int) -> Callable[..., Any]:
    def hook(_: Any, __: Any, output: Tensor) -> Tensor | None:
        return seen(level, output)

    return hook
