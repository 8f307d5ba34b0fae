"""Distances between sets whose samples come in clusters, such as several pictures of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bootstrap import Z95, Estimate, bootstrap_mean
from .distances import PrincipalAxes, _kernel_distances, frechet_distance, precision_recall
from .distribution import AXES, compare_features


def compare_clustered(
    generated: Tensor,
    reference: Tensor,
    name: str,
    clusters: np.ndarray,
    *,
    all_features: bool = True,
    resamples: int = 200,
    neighbours: int = 3,
) -> dict[str, Tensor]:
    """`compare_features`, with intervals for which clusters are drawn whole.

    Pictures of one prompt are alike: drawn one by one they would make an interval too narrow.
    Values, floors and counts are those of `compare_features`, and so is the interval of recall,
    which is a share of reference samples.

    Args:
        clusters: (N,) labels of the generated samples' clusters; all else as there.

    Raises ValueError for clusters that are not all of one size.
    """
    generated, reference = generated.cpu().double(), reference.cpu().double()
    found = compare_features(
        generated,
        reference,
        name,
        all_features=all_features,
        resamples=2,  # its own intervals are replaced
        neighbours=neighbours,
    )
    draws = _Draws(clusters, len(reference), resamples)

    def renew(label: str, values: Callable[[], Tensor]) -> None:
        if label in found:
            sd = values().std().item()
            middle = found[label].item()
            _put(found, label, Estimate(middle, middle - Z95 * sd, middle + Z95 * sd, sd, 0))

    def principal() -> Tensor:
        axes = PrincipalAxes.fit(reference, AXES)
        return draws.distances(frechet_distance, axes(generated), axes(reference), resamples)

    def whole() -> Tensor:
        count = max(resamples // 10, 2)
        return draws.distances(frechet_distance, generated, reference, count)

    renew(f"quality/fd_pca{AXES}_{name}", principal)
    renew(f"quality/kid_{name}", lambda: _kernel_distances(generated, reference, *draws.weights()))
    renew("quality/fid" if name == "inception" else f"quality/fd_{name}", whole)
    label = f"quality/precision_{name}"
    if label in found:
        inside, _ = precision_recall(generated, reference, neighbours)
        _put(found, label, bootstrap_mean(inside.double().cpu().numpy(), clusters))
    return found


class _Draws:
    """Samples drawn with replacement: clusters of the first set, single ones of the second."""

    def __init__(self, clusters: np.ndarray, second: int, resamples: int) -> None:
        _, group = np.unique(clusters, return_inverse=True)
        sizes = np.bincount(group)
        if (sizes != sizes[0]).any():
            raise ValueError("clusters must be of one size: as many pictures of each prompt")
        order = torch.from_numpy(np.argsort(group, kind="stable"))
        self.members = order.reshape(len(sizes), -1)
        generator = torch.Generator().manual_seed(0)
        count = len(self.members)
        self.first = torch.randint(count, (resamples, count), generator=generator)
        self.second = torch.randint(second, (resamples, second), generator=generator)

    def distances(self, distance: Any, first: Tensor, second: Tensor, count: int) -> Tensor:
        """(count,) values of `distance` between drawn sets."""
        values = [
            distance(first[self.members[groups].flatten()], second[rows])
            for groups, rows in zip(self.first[:count], self.second[:count], strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)

    def weights(self) -> tuple[Tensor, Tensor]:
        """How often each sample of the first and the second set is drawn: (R, N) and (R, M)."""
        samples = self.members[self.first].flatten(1)
        return _counts(samples, self.members.numel()), _counts(self.second, self.second.shape[1])


def _counts(drawn: Tensor, size: int) -> Tensor:
    counts = torch.zeros(len(drawn), size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _put(found: dict[str, Tensor], label: str, estimate: Estimate) -> None:
    for ending, value in (("lo", estimate.low), ("hi", estimate.high), ("sd", estimate.sd)):
        found[f"{label}_{ending}"] = torch.tensor(value, dtype=torch.float64)
