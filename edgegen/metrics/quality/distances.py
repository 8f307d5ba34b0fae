"""Distances between two sets of features: Fréchet, kernel, precision and recall.

Everything is computed in float64 on the CPU. Rows are samples, columns are features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bootstrap import Z95, Estimate, bootstrap_mean

_ROWS = 512  # samples compared at once


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets, (N, D) and (M, D).

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with unbiased covariances (Heusel et al. 2017,
    equation 6). It is FID with Inception features alone.

    With centred sets X₁ and X₂ as factors of Σ₁ and Σ₂, tr (Σ₁Σ₂)^½ is the nuclear norm of X₁X₂ᵀ,
    which needs no root of a matrix and stays accurate where N ≤ D. The distance is biased upwards
    by about 1/N, though: compare only sets of one size.

    Raises ValueError for less than two samples, or another number of features.
    """
    factors, means, spread = [], [], 0.0
    for features in _checked(first, second, least=2):
        mean = features.mean(0)
        centred = (features - mean) / (len(features) - 1) ** 0.5
        if len(centred) > centred.shape[1]:
            centred = torch.linalg.qr(centred, mode="r").R
        spread += centred.square().sum().item()
        factors.append(centred)
        means.append(mean)
    overlap = torch.linalg.svdvals(factors[0] @ factors[1].T).sum().item()
    distance = (means[0] - means[1]).square().sum().item() + spread - 2 * overlap
    return max(distance, 0.0)  # below 0 by rounding alone


@dataclass(frozen=True)
class PrincipalAxes:
    """The axes along which a set varies most, and the projection on them.

    With few samples a Fréchet distance over all features says more about their number than about
    the pictures: over 64 axes it needs far fewer.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, features: Tensor, count: int = 64) -> PrincipalAxes:
        """Of (N, D) features, in float64; ValueError where N ≤ `count` or D < `count`."""
        (features,) = _checked(features, least=2)
        if len(features) <= count or features.shape[1] < count:
            raise ValueError(
                f"{count} principal axes need more than {count} samples of {count} features or "
                f"more, got {len(features)} of {features.shape[1]}"
            )
        _, axes = torch.linalg.eigh(torch.cov(features.T))  # eigenvalues ascend
        return cls(features.mean(0), axes[:, -count:].flip(1))

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) to (N, count)."""
        return (features.cpu().double() - self.mean) @ self.axes


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (N, D) and (M, D); KID with Inception features.

    The kernel is (x·y / D + 1)³ (Bińkowski et al. 2018), over all pairs, where the original
    averages over random subsets. It may be below 0.
    """
    ones = [torch.ones(1, len(features), dtype=torch.float64) for features in (first, second)]
    return _kernel_distances(first, second, *ones).item()


def bootstrap_kernel(
    first: Tensor,
    second: Tensor,
    *,
    resamples: int,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """`kernel_distance` with its bootstrap interval; see `bootstrap_distance`.

    The kernels are computed once; memory grows with N · (512 + resamples).
    """
    weights = []
    for drawn in _draws(first, second, resamples, clusters, seed):
        counts = torch.zeros(resamples + 1, drawn.shape[1], dtype=torch.float64)
        counts[0] = 1
        counts[1:].scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        weights.append(counts)
    values = _kernel_distances(first, second, *weights)
    return _estimate(values[0].item(), values[1:], len(first))


def cluster_members(clusters: np.ndarray | None, count: int) -> Tensor:
    """(C, count / C) places of the samples in each cluster, by (count,) labels; None: each alone.

    Raises ValueError for another number of labels, and clusters that are not all of one size.
    """
    labels = np.arange(count) if clusters is None else np.asarray(clusters)
    if labels.shape != (count,):
        raise ValueError(f"{count} samples but cluster labels of shape {labels.shape}")
    _, group = np.unique(labels, return_inverse=True)
    sizes = np.bincount(group)
    if (sizes != sizes[0]).any():
        raise ValueError("clusters must be of one size: as many pictures of each prompt")
    return torch.from_numpy(np.argsort(group, kind="stable")).reshape(len(sizes), -1)


def _draws(
    first: Tensor, second: Tensor, resamples: int, clusters: np.ndarray | None, seed: int
) -> tuple[Tensor, Tensor]:
    """(R, N) and (R, M): which samples of the two sets each resample holds."""
    generator = torch.Generator().manual_seed(seed)
    members = cluster_members(clusters, len(first))
    chosen = torch.randint(len(members), (resamples, len(members)), generator=generator)
    others = torch.randint(len(second), (resamples, len(second)), generator=generator)
    return members[chosen].flatten(1), others


def _kernel_distances(first: Tensor, second: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """One distance for each row of the weights v (R, N) and w (R, M): how often a sample counts."""
    first, second = _checked(first, second, least=2)
    n, m = len(first), len(second)
    within = torch.zeros(len(v), dtype=torch.float64)
    for features, weights in ((first, v), (second, w)):
        own = (features.square().sum(1) / features.shape[1] + 1) ** 3
        pairs = _weighted_kernel(features, features, weights, weights) - weights @ own
        within += pairs / (len(features) * (len(features) - 1))
    return within - 2 * _weighted_kernel(first, second, v, w) / (n * m)


def _weighted_kernel(first: Tensor, second: Tensor, v: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros(len(v), dtype=torch.float64)
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        block = (first[rows] @ second.T / first.shape[1] + 1) ** 3
        total += (v[:, rows] * (w @ block.T)).sum(1)
    return total


def bootstrap_distance(
    distance: Callable[[Tensor, Tensor], float],
    first: Tensor,
    second: Tensor,
    *,
    resamples: int,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """A distance with its interval: value ± 1.96 bootstrap standard deviations.

    Samples of both sets are drawn with replacement. A drawn set holds samples twice, which moves a
    distance upwards but hardly its spread, so only the spread is taken from the draws. The
    interval is of the distance at this number of samples, upward bias included.

    Args:
        distance: such as `frechet_distance`.
        first, second: (N, D) and (M, D); `n` of the result is N.
        clusters: (N,) labels of groups of `first` that are drawn whole, such as the pictures of one
            prompt, which are alike: drawn one by one they would make the interval too narrow.
            All of one size; None takes every sample for itself.
    """
    draws = _draws(first, second, resamples, clusters, seed)
    values = [distance(first[own], second[others]) for own, others in zip(*draws, strict=True)]
    return _estimate(distance(first, second), torch.tensor(values).double(), len(first))


def _estimate(value: float, drawn: Tensor, n: int) -> Estimate:
    sd = drawn.std().item()
    return Estimate(value, value - Z95 * sd, value + Z95 * sd, sd, n)


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equation 2), sample by sample.

    A sample lies in the manifold of a set where it is no farther from one of the set's samples
    than that one is from its k-th nearest other.

    Returns:
        (N,) bool, which generated samples lie in the reference's manifold: precision is the mean.
        (M,) bool, which reference samples lie in the generated manifold: recall is the mean.

    Raises ValueError where a set has no more than `k` samples.
    """
    generated, reference = _checked(generated, reference, least=k + 1)
    return _within(generated, reference, k), _within(reference, generated, k)


def _within(queries: Tensor, manifold: Tensor, k: int) -> Tensor:
    parts = manifold.split(_ROWS)
    # The nearest is the sample itself.
    radii = torch.cat([torch.cdist(part, manifold).kthvalue(k + 1).values for part in parts])
    return torch.cat(
        [(torch.cdist(part, manifold) <= radii).any(1) for part in queries.split(_ROWS)]
    )


def share(inside: Tensor, clusters: np.ndarray | None = None, *, resamples: int = 2000) -> Estimate:
    """Share of (N,) bool with its interval, the manifolds taken as given."""
    return bootstrap_mean(inside.double().cpu().numpy(), clusters, resamples=resamples)


def noise_floor(
    distance: Callable[[Tensor, Tensor], float],
    reference: Tensor,
    n: int,
    *,
    splits: int = 4,
    seed: int = 0,
) -> tuple[float, int]:
    """What `distance` says of real samples against others: the mean over random splits.

    A method whose `n` samples come no closer to the reference than that cannot be told from it.

    Args:
        reference: (M, D). Of each split `n` samples, M / 2 at most, are compared with all others.

    Returns:
        The mean, and how many samples were compared with the others.
    """
    if len(reference) < 4:
        raise ValueError(f"a noise floor needs four samples or more, got {len(reference)}")
    count = min(n, len(reference) // 2)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(splits):
        order = torch.randperm(len(reference), generator=generator)
        total += distance(reference[order[:count]], reference[order[count:]])
    return total / splits, count


def warn_if_few(first: Tensor, second: Tensor, name: str) -> None:
    """Warn where a set has no more samples than features: its covariance has no full rank."""
    n, dimensions = min(len(first), len(second)), first.shape[1]
    if n <= dimensions:
        warnings.warn(
            f"{name}: {n} samples for {dimensions} dimensions: the distance is mostly bias; take "
            "more samples",
            stacklevel=2,
        )


def _checked(*sets: Tensor, least: int) -> list[Tensor]:
    for features in sets:
        if features.ndim != 2 or features.shape[1] != sets[0].shape[1]:
            shapes = ", ".join(str(tuple(features.shape)) for features in sets)
            raise ValueError(f"features must be (N, D) with one D, got {shapes}")
        if len(features) < least:
            raise ValueError(f"{least} samples or more are needed, got {len(features)}")
    return [features.cpu().double() for features in sets]
