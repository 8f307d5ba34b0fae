"""The common coat of the metrics that give each sample a score of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .bootstrap import bootstrap_mean


class SampleMetric(Metric):
    """Keeps one row of scores a sample; gives means with bootstrap intervals.

    Args:
        names: K names of the columns, as in `metrics.json`: `group/name`.
        resamples: draws of the bootstrap.

    Subclasses call `_keep` in `update`. Call `update` alone and `compute` once: `forward` would
    bootstrap every batch.

    With several processes hand every `update` the `indices` of its samples in the whole data set:
    rows are sorted by them, so that the split over processes changes nothing, and what a
    distributed sampler repeats to fill up its last batch is counted once.
    """

    full_state_update = False
    higher_is_better: bool | None = None

    def __init__(self, names: tuple[str, ...], *, resamples: int = 2000, **options: Any) -> None:
        super().__init__(**options)
        self.names, self.resamples = names, resamples
        self.rows: list[Tensor]
        self.row_indices: list[Tensor]
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("row_indices", default=[], dist_reduce_fx="cat")

    def _keep(self, rows: Tensor, indices: Tensor | None) -> None:
        """Keep (B, K) scores, NaN where a sample has none; (B,) indices."""
        self.rows.append(rows.detach().double().to(self.device))
        self.row_indices.append(checked_indices(indices, len(rows)).to(self.device))

    def samples(self) -> tuple[Tensor, Tensor]:
        """All processes' scores, sorted by index: (N, K) float64 and (N,) int64.

        Index -1 stands for unknown. All processes must call it. Raises ValueError where there is
        no sample.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            should_sync=not self._is_synced,
            should_unsync=not self._is_synced,
        ):
            if len(self.rows) == 0:
                raise ValueError(f"{type(self).__name__}: no samples yet, call update first")
            rows, indices = dim_zero_cat(self.rows), dim_zero_cat(self.row_indices)
        order = canonical_order(indices)
        return rows[order], indices[order]

    def compute(self) -> dict[str, Tensor]:
        """For each name the mean, with `_lo` and `_hi` (95 % bootstrap), `_sd` (of the mean), `_n`.

        Names for which no sample has a score are left out.
        """
        rows, _ = self.samples()
        result: dict[str, Tensor] = {}
        for name, column in zip(self.names, rows.T, strict=True):
            known = column[~column.isnan()]
            if len(known):
                estimate = bootstrap_mean(known.cpu().numpy(), resamples=self.resamples)
                result |= numbers(name, estimate.value, estimate.low, estimate.high, estimate.sd)
                result[f"{name}_n"] = torch.tensor(estimate.n)
        return result


def numbers(name: str, value: float, low: float, high: float, sd: float) -> dict[str, Tensor]:
    """A value and its interval under the names of `metrics.json`, as float64 tensors."""
    values = {name: value, f"{name}_lo": low, f"{name}_hi": high, f"{name}_sd": sd}
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}


def checked_indices(indices: Tensor | None, count: int) -> Tensor:
    """(count,) int64 indices of samples; -1 each where None is given."""
    if indices is None:
        return torch.full((count,), -1)
    indices = torch.as_tensor(indices)
    if indices.shape != (count,):
        raise ValueError(f"{count} samples but indices of shape {tuple(indices.shape)}")
    return indices.long()


def canonical_order(indices: Tensor) -> Tensor:
    """Rows in ascending order of their index, without those that repeat an index from 0 on."""
    order = indices.argsort(stable=True)
    ordered = indices[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first | (ordered < 0)]
