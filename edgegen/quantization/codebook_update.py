"""The codebook update of GPTVQ (arXiv 2402.15319, section 3.2), and assignments once more.

Both lower tr((W−Q)·H·(W−Q)ᵀ), one with the indices held, one with the codebooks held.
"""

from __future__ import annotations

import torch

from .codebooks import Layout

STEPS = 40  # of conjugate gradients at most
_SMALLEST = 1e-30


def refine(
    codebooks: torch.Tensor,
    indices: torch.Tensor,
    layout: Layout,
    scales: torch.Tensor,
    target: torch.Tensor,
    hessian: torch.Tensor,
    rounds: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebooks (codebooks, entries, d) and indices (R, vectors), updated and assigned in turn.

    Args:
        codebooks, indices: where to start.
        scales, target: (R, K) with K = vectors·d.
        hessian: (K, K), damped.
        rounds: of assignments; the update comes before the first and after each.
    """
    first = layout.groups(target.device) * layout.entries
    codebooks = update_codebooks(codebooks, first + indices, scales, target, hessian)
    for _ in range(rounds):
        indices = assign_again(codebooks, indices, layout, scales, target, hessian)
        codebooks = update_codebooks(codebooks, first + indices, scales, target, hessian)
    return codebooks, indices


def assign_again(
    codebooks: torch.Tensor,
    indices: torch.Tensor,
    layout: Layout,
    scales: torch.Tensor,
    target: torch.Tensor,
    hessian: torch.Tensor,
) -> torch.Tensor:
    """Indices (R, vectors): each is chosen anew for the least loss, all others held.

    Coordinate descent from the left to the right: the loss never rises. Args: see `refine`.
    """
    d, groups = layout.dimension, layout.groups(target.device)
    rows = torch.arange(layout.rows, device=target.device)
    made = scales * codebooks[groups, indices].flatten(1)
    slope = (target - made) @ hessian
    found = indices.clone()
    for vector in range(layout.vectors):
        here = slice(vector * d, vector * d + d)
        own = hessian[here, here]
        best = made[:, here] + slope[:, here] @ torch.linalg.inv(own)
        offered = codebooks[groups[:, vector]] * scales[:, here][:, None]  # (R, entries, d)
        errors = (best[:, None] - offered) @ torch.linalg.cholesky(own)
        found[:, vector] = errors.square().sum(-1).argmin(1)
        chosen = offered[rows, found[:, vector]]
        slope -= (chosen - made[:, here]) @ hessian[here]
        made[:, here] = chosen
    return found


def update_codebooks(
    codebooks: torch.Tensor,
    places: torch.Tensor,
    scales: torch.Tensor,
    target: torch.Tensor,
    hessian: torch.Tensor,
    steps: int = STEPS,
) -> torch.Tensor:
    """The codebooks with the least tr((W−Q)·H·(W−Q)ᵀ) for given indices.

    A least-squares problem, solved by conjugate gradients: the loss never rises.

    Args:
        codebooks: (codebooks, entries, d), where to start.
        places: (R, vectors), rows of the codebooks laid end to end.
        scales, target: (R, K) with K = vectors·d.
        hessian: (K, K).
    """
    entries, dimension = codebooks.flatten(0, 1), codebooks.shape[-1]
    flat = places.reshape(-1)

    def spread(rows: torch.Tensor) -> torch.Tensor:
        return scales * rows[places].flatten(1)

    def gather(matrix: torch.Tensor) -> torch.Tensor:
        parts = (scales * matrix).reshape(-1, dimension)
        return torch.zeros_like(entries).index_add_(0, flat, parts)

    diagonal = gather(scales * hessian.diagonal())  # entries without a vector stay as they are
    precondition = torch.where(diagonal > 0, 1 / diagonal.clamp(min=_SMALLEST), 0.0)
    found = entries.clone()
    rest = gather((target - spread(found)) @ hessian)
    step = precondition * rest
    size = first = (rest * step).sum()
    for _ in range(steps):
        if size <= 1e-10 * first or size == 0:
            break
        image = gather(spread(step) @ hessian)
        length = size / (step * image).sum()
        found += length * step
        rest -= length * image
        ahead = precondition * rest
        size, before = (rest * ahead).sum(), size
        step = ahead + size / before * step
    return found.view_as(codebooks)
