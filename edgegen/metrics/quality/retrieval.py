"""Retrieval: how often the right answer is among the nearest."""

from __future__ import annotations

from torch import Tensor


def retrieval_accuracy(queries: Tensor, gallery: Tensor, k: int) -> float:
    """Share of queries whose own entry is among the `k` gallery entries of highest similarity.

    Args:
        queries: (N, D) unit vectors.
        gallery: (N, D) unit vectors; entry i belongs to query i.
        k: a rank, 1 or more.

    Ties count against the query.
    """
    similarity = queries @ gallery.T
    own = similarity.diagonal()[:, None]
    ahead = (similarity >= own).sum(1) - 1
    return (ahead < k).float().mean().item()
