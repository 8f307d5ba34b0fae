"""Edited clips against their truth: the error, and what not sticking to one choice costs.

An instruction may have several right answers ("make it another season"); each is a target clip.
"""

from __future__ import annotations

import torch
from torch import Tensor


def target_errors(edited: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error of each frame against each target: (S, T) float64, in [0, 1].

    Args:
        edited: (T, 3, H, W) floats in [0, 1].
        targets: (S, T, 3, H, W).

    Raises ValueError for shapes that do not match.
    """
    if targets.ndim != 5 or targets.shape[1:] != edited.shape or len(targets) < 1:
        shapes = f"{tuple(edited.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"needs a clip (T, 3, H, W) and targets (S, T, 3, H, W), got {shapes}")
    # Target by target: they may be many.
    errors = [(edited.double() - target.double()).square().mean((1, 2, 3)) for target in targets]
    return torch.stack(errors).sqrt()


def clip_error(errors: Tensor) -> float:
    """Error to the best single target for the whole clip: min over s of the mean over t of (S, T).

    It is 0 for a clip that is any one of the targets.
    """
    return errors.mean(1).min().item()


def clip_regret(errors: Tensor) -> float:
    """What the clip loses by changing its mind, 0 or more; 0 where there is one target alone.

    The error to the best single target for the whole clip, minus the mean of each frame's error to
    the target that is best for it: min_s mean_t e(s, t) − mean_t min_s e(s, t), of (S, T) errors.
    """
    return clip_error(errors) - errors.min(0).values.mean().item()


def gap_closed(errors: Tensor, before: Tensor) -> float:
    """Share of the way from the source to the target that an edit goes: 1 − error / error of the
    source, to the target that is best for the clip.

    1 is the target itself, 0 the source left as it is, negative what is worse than that.

    Args:
        errors, before: (S, T) of `target_errors`: of the edited clip, and of the source.

    Raises ValueError where the source is that target already.
    """
    best = int(errors.mean(1).argmin())
    whole = before[best].mean().item()
    if whole == 0:
        raise ValueError("the source is its own target: there is no gap to close")
    return 1 - errors[best].mean().item() / whole
