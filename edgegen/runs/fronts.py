"""How much more one set of methods gains than another, with an interval over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..metrics.quality.bootstrap import Estimate
from .pareto import hypervolume

Set = tuple[np.ndarray, np.ndarray]
"""(M,) costs of methods, and their (M, N) errors; column i is the same prompt and noise for all."""


def hypervolume_gain(
    ours: Set,
    theirs: Set,
    reference: Sequence[float],
    *,
    clusters: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Estimate, Estimate, Estimate]:
    """Hypervolumes of (cost, mean error) of two sets of methods, and their difference.

    Prompts are drawn for all methods of both sets together, so that what a prompt costs all of them
    cancels out of the difference. The first set beats more where its interval lies above zero.

    Args:
        ours, theirs: see `Set`.
        reference: (cost, error) that counts as no gain, see `pareto.hypervolume`.
        clusters: (N,) label of the group that a sample belongs to, such as its prompt: groups are
            drawn whole. None takes every sample for itself.
        resamples, seed: how many times they are drawn, and by which random numbers.

    Returns the estimates of ours, theirs, and ours − theirs, with 95 % percentile intervals.

    Raises ValueError for shapes that do not fit.
    """
    costs, errors = zip(
        *((np.asarray(c, float), np.asarray(e, float)) for c, e in (ours, theirs)), strict=True
    )
    counts = {array.shape[-1] for array in errors if array.ndim == 2}
    fits = all(e.ndim == 2 and c.shape == e.shape[:1] for c, e in zip(costs, errors, strict=True))
    if not fits or len(counts) != 1 or counts == {0}:
        shapes = [(c.shape, e.shape) for c, e in zip(costs, errors, strict=True)]
        raise ValueError(f"costs and errors {shapes}: need (M,) and (M, N) with one N for both")
    samples = counts.pop()
    groups = np.arange(samples) if clusters is None else np.asarray(clusters)
    if groups.shape != (samples,):
        raise ValueError(f"{samples} samples but cluster labels of shape {groups.shape}")
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group).astype(float)
    sums = [np.stack([np.bincount(group, row) for row in array]) for array in errors]

    def volumes(weights: np.ndarray) -> list[float]:
        means = [array @ weights / (sizes @ weights) for array in sums]
        return [
            hypervolume(np.stack([cost, mean], 1), reference)
            for cost, mean in zip(costs, means, strict=True)
        ]

    rng = np.random.default_rng(seed)
    count = len(sizes)
    drawn = np.array(
        [
            volumes(np.bincount(rng.integers(0, count, count), minlength=count).astype(float))
            for _ in range(resamples)
        ]
    )
    whole = np.array(volumes(np.ones(count)))
    drawn = np.column_stack([drawn, drawn[:, 0] - drawn[:, 1]])
    whole = np.append(whole, whole[0] - whole[1])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return tuple(  # type: ignore[return-value]
        Estimate(float(v), float(a), float(b), float(s), samples)
        for v, a, b, s in zip(whole, low, high, drawn.std(0), strict=True)
    )
