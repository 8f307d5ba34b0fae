"""Trajectories on which adaptors learn: of the student itself, or of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .clock import Clock, Drift, parse_clock, planned
from .cut import Stage
from .observation import Observation, observe

Adaptor = Callable[..., Tensor]
"""(r_in, previous r_out, time, text) → r̂_out, as a `ResNetAdaptor`."""


class Prediction(NamedTuple):
    """What an adaptor said at a reuse step, what is true there, and what was last known.

    All are (B, C, H, W), with the guidance branches in the batch; `value` alone has a gradient.
    """

    value: Tensor
    target: Tensor
    previous: Tensor


def planned_passes(clock: Any, total: int) -> list[bool]:
    """For each of `total` evaluations, whether it is a full one.

    Raises:
        ValueError: a clock that depends on features, or one that never reuses in `total` steps.
    """
    known: Clock = parse_clock(clock)
    if isinstance(known, Drift):
        raise ValueError("clock drift: adaptors are trained on steps that are known beforehand")
    passes = planned(known, total)
    if all(passes):
        raise ValueError(f"clock={clock}: all of {total} steps run in full, nothing is predicted")
    return passes


def unrolled(
    unet: Any,
    cut: Stage,
    adaptor: Adaptor,
    passes: Sequence[bool],
    run: Iterable[Any],
    student: bool = True,
) -> Iterator[Prediction]:
    """Predictions at the reuse steps of a denoising run (Clockwork Diffusion, algorithm 1).

    Every evaluation is a full one, which gives the truth; at reuse steps the prediction goes on in
    its place, so that a step costs one evaluation, and the run is that of `clockwork` to the bit.

    Args:
        unet: frozen, without gradients in `run`; nothing else may be attached to it.
        passes: for each evaluation, whether it is a full one.
        run: evaluates the UNet once each time it is asked for the next item, as `denoise` does.
        student: on the student's own trajectory, where its errors add up; else on its teacher's,
            where the adaptor is given the true features of the step before.
    """
    found: list[Prediction] = []
    order = iter(passes)
    previous: Tensor | None = None

    def exchange(seen: Observation) -> Tensor:
        nonlocal previous
        target = seen.r_out
        if next(order):
            previous = target
            return target
        assert previous is not None
        with torch.enable_grad():
            value = adaptor(seen.r_in, previous, seen.time, seen.text)
        found.append(Prediction(value, target, previous))
        previous = value.detach().to(target.dtype) if student else target
        return previous

    with observe(unet, cut, exchange):
        for _ in run:
            yield from found
            found.clear()


def trajectory_features(unet: Any, cut: Stage, run: Iterable[Any]) -> dict[str, Tensor]:
    """The features of a teacher's run, by step: what adaptors need of its trajectory.

    Returns `r_in`, `r_out` (B, S, C, H, W), `time` (B, S, D), and `text` (B, D), the mean over
    tokens; the guidance branches are in the batch as the UNet has them.
    """
    steps: dict[str, list[Tensor]] = {"r_in": [], "r_out": [], "time": []}
    text: Tensor | None = None
    with observe(unet, cut) as seen:
        for _ in run:
            steps["r_in"].append(seen.r_in)
            steps["r_out"].append(seen.r_out)
            steps["time"].append(seen.time.expand(len(seen.r_in), -1))
            text = seen.text
    found = {name: torch.stack(values, 1) for name, values in steps.items()}
    if text is not None:
        text = text[0] if isinstance(text, tuple) else text
        found["text"] = text.float().mean(1)
    return found


def on_features(
    adaptor: Adaptor, features: dict[str, Tensor], passes: Sequence[bool]
) -> Prediction:
    """The adaptor at all reuse steps of `trajectory_features` at once, as one batch (B·R, …)."""
    reused = [step for step, full in enumerate(passes) if not full]
    before = [step - 1 for step in reused]
    r_out = features["r_out"]
    previous, target = r_out[:, before].flatten(0, 1), r_out[:, reused].flatten(0, 1)
    text = features.get("text")
    if text is not None:
        text = text[:, None].expand(-1, len(reused), -1).flatten(0, 1)
    value = adaptor(
        features["r_in"][:, reused].flatten(0, 1),
        previous,
        features["time"][:, reused].flatten(0, 1),
        text,
    )
    return Prediction(value, target, previous)
