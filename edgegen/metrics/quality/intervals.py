"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np


def ratio_interval(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a ratio of sums over clusters.

    Clusters are drawn whole, so that all pictures of one caption stay together. With sizes as
    denominators it is the interval of a mean.

    Args:
        numerators, denominators: (C,) sums of each cluster.
        level: the share of resampled ratios inside, in (0, 1).
        resamples, seed: how many times the clusters are drawn, and by which random numbers.

    Returns:
        The lower and the upper end; infinite or NaN where the denominators of a draw sum to 0.
    """
    if len(numerators) == 0:
        raise ValueError("no clusters to draw from")
    drawn = np.random.default_rng(seed).integers(len(numerators), size=(resamples, len(numerators)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = numerators[drawn].sum(1) / denominators[drawn].sum(1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
