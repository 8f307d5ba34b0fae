"""Bootstrap of means: intervals for per-sample scores, and for the difference of two methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` samples with the ends of its 95 % interval and its standard error `sd`."""

    value: float
    low: float
    high: float
    sd: float
    n: int


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


def bootstrap_mean(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean with a 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (N,) one score a sample.
        clusters: (N,) label of the group that a sample belongs to, such as its prompt where each
            prompt has several seeds. Groups are drawn whole, since their samples are alike; None
            takes every sample for itself.
        resamples, seed: how many times samples are drawn, and by which random numbers.

    Raises ValueError where there is no value, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("values must be one finite number or more, in one dimension")
    groups = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    if groups.shape != values.shape:
        raise ValueError(f"{len(values)} values but cluster labels of shape {groups.shape}")
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group).astype(np.float64)
    low, high = ratio_interval(sums, sizes, resamples=resamples, seed=seed)
    mean = float(values.mean())
    # Standard error of a ratio of sums (Cochran 1977, chapter 2).
    spread = np.square(sums - mean * sizes).sum() * len(sums) / max(len(sums) - 1, 1)
    return Estimate(mean, low, high, float(np.sqrt(spread) / sizes.sum()), len(values))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of `first − second` over the same samples, with its paired bootstrap interval.

    Both methods are drawn together, so that what a sample costs either of them cancels out. The
    methods differ where the interval leaves 0 out.

    Args:
        first, second: (N,) scores of two methods; row i of both is the same prompt and noise.
        clusters, resamples, seed: as of `bootstrap_mean`.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs are needed, got {first.shape} and {second.shape} scores")
    return bootstrap_mean(first - second, clusters, resamples=resamples, seed=seed)
