"""How far generated pictures are from real ones, as sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .backbone import BATCH, features_of, load_backbone, name_of
from .bootstrap import Estimate
from .distances import (
    PrincipalAxes,
    bootstrap_distance,
    bootstrap_kernel,
    cluster_members,
    frechet_distance,
    kernel_distance,
    noise_floor,
    precision_recall,
    share,
    warn_if_few,
)
from .samples import canonical_order, checked_indices, numbers

AXES = 64


class Distribution(Metric):
    """Fréchet and kernel distance, precision and recall, from one pass of features.

    The features are kept, so all of it comes with an interval and nothing is sampled twice.

    Args:
        backbone: as `load_backbone` takes it; it gives the names: with `efflite0` they are
            `quality/fd_pca64_efflite0` (Fréchet distance over the 64 principal axes of the
            reference), `quality/fd_efflite0` (over all features), `quality/kid_efflite0`,
            `quality/precision_efflite0`, `quality/recall_efflite0`. The Fréchet distance is called
            `quality/fid` for Inception alone.
        all_features: also compute the Fréchet distance over all features; with 1280 features each
            draw takes seconds, so its interval rests on a tenth of `resamples`.
        resamples: draws of the bootstrap.
        neighbours: k of precision and recall.
        batch: how many pictures the backbone sees at once: part of the result's last bits.

    Beside each name stand `_lo` and `_hi` (95 %), `_sd` and `_n` (of generated samples; of
    reference samples for recall); beside a distance also `_floor`, the same distance between
    `_floor_n` real samples and the others (`noise_floor`); with a reference not twice as large as
    the generated set it is of fewer samples, and so too high.
    """

    full_state_update = False
    higher_is_better = None

    def __init__(
        self,
        backbone: nn.Module | str | Path = "efflite0",
        *,
        all_features: bool = True,
        resamples: int = 200,
        neighbours: int = 3,
        batch: int = BATCH,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.backbone = load_backbone(backbone)
        self.name = name_of(self.backbone)
        self.all_features, self.resamples = all_features, resamples
        self.neighbours, self.batch = neighbours, batch
        for kind in ("generated", "reference"):
            self.add_state(kind, default=[], dist_reduce_fx="cat")
            self.add_state(f"{kind}_indices", default=[], dist_reduce_fx="cat")

    def update(self, pictures: Tensor, *, real: bool, indices: Tensor | None = None) -> None:
        """Add pictures, or features kept from before.

        Args:
            pictures: (B, 3, H, W) floats in [0, 1], or (B, D) features of this backbone.
            real: whether they belong to the reference.
            indices: (B,) places in the whole data set, each counted once; see `SampleMetric`.
        """
        found = pictures if pictures.ndim == 2 else features_of(self.backbone, pictures, self.batch)
        kind = "reference" if real else "generated"
        getattr(self, kind).append(found.detach().to(self.device))
        getattr(self, f"{kind}_indices").append(
            checked_indices(indices, len(found)).to(self.device)
        )

    def features(self, *, real: bool) -> Tensor:
        """All processes' features, sorted by index: (N, D) float32. All processes must call it."""
        kind = "reference" if real else "generated"
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=not self._is_synced,
            should_unsync=not self._is_synced,
        ):
            if len(getattr(self, kind)) == 0:
                raise ValueError(f"Distribution: no {kind} pictures yet, call update first")
            rows = dim_zero_cat(getattr(self, kind))
            order = canonical_order(dim_zero_cat(getattr(self, f"{kind}_indices")))
        return rows[order]

    def compute(self) -> dict[str, Tensor]:
        """Name → value; what too few samples do not allow is left out, with a warning."""
        generated, reference = self.features(real=False), self.features(real=True)
        return compare_features(
            generated,
            reference,
            self.name,
            all_features=self.all_features,
            resamples=self.resamples,
            neighbours=self.neighbours,
        )


def compare_features(
    generated: Tensor,
    reference: Tensor,
    name: str,
    *,
    all_features: bool = True,
    resamples: int = 200,
    neighbours: int = 3,
    clusters: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """What `Distribution` gives, of (N, D) and (M, D) features kept from before.

    Args:
        name: of the backbone that they come from.
        all_features, resamples, neighbours: as of `Distribution`.
        clusters: (N,) of the generated samples, see `bootstrap_distance`. The interval of recall, a
            share of reference samples, does not depend on them.
    """
    generated, reference = generated.cpu().double(), reference.cpu().double()
    cluster_members(clusters, len(generated))  # refused here, not left out below
    result: dict[str, Tensor] = {}

    def frechet(label: str, pair: tuple[Tensor, Tensor], draws: int) -> None:
        warn_if_few(*pair, label)
        estimate = bootstrap_distance(frechet_distance, *pair, resamples=draws, clusters=clusters)
        result.update(_named(label, estimate))
        result.update(_floor(label, frechet_distance, pair))

    def kernel() -> None:
        label, pair = f"quality/kid_{name}", (generated, reference)
        result.update(
            _named(label, bootstrap_kernel(*pair, resamples=resamples, clusters=clusters))
        )
        result.update(_floor(label, kernel_distance, pair))

    def manifolds() -> None:
        inside = precision_recall(generated, reference, neighbours)
        for label, hits, groups in zip(
            ("precision", "recall"), inside, (clusters, None), strict=True
        ):
            result.update(_named(f"quality/{label}_{name}", share(hits, groups)))

    def principal() -> None:
        axes = PrincipalAxes.fit(reference, AXES)
        pair = axes(generated), axes(reference)
        frechet(f"quality/fd_pca{AXES}_{name}", pair, resamples)

    parts: list[Callable[[], None]] = [principal, kernel, manifolds]
    if all_features:
        label = "quality/fid" if name == "inception" else f"quality/fd_{name}"
        draws = max(resamples // 10, 2)
        parts.append(partial(frechet, label, (generated, reference), draws))
    for part in parts:
        try:
            part()
        except ValueError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return result


def _named(label: str, estimate: Estimate) -> dict[str, Tensor]:
    found = numbers(label, estimate.value, estimate.low, estimate.high, estimate.sd)
    return found | {f"{label}_n": torch.tensor(estimate.n)}


def _floor(
    label: str, distance: Callable[[Tensor, Tensor], float], pair: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    floor, count = noise_floor(distance, pair[1], len(pair[0]))
    return {
        f"{label}_floor": torch.tensor(floor, dtype=torch.float64),
        f"{label}_floor_n": torch.tensor(count),
    }
