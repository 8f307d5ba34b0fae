"""The codebook update of GPTVQ (arXiv 2402.15319, section 3.2), and assignments once more.

Both lower tr((W−Q)·H·(W−Q)ᵀ), one with the indices held, one with the codebooks held.
"""

from __future__ import annotations

import torch

from .codebooks import Layout
from .gptq import BLOCK

STEPS = 40  # of conjugate gradients at most
FIRST_STEPS = 10  # before assignments that are made once more
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
    given = (scales, target, hessian)
    for _ in range(rounds):
        codebooks = update_codebooks(codebooks, first + indices, *given, FIRST_STEPS)
        indices = assign_again(codebooks, indices, layout, *given)
    codebooks = update_codebooks(codebooks, first + indices, *given)
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
    starts = range(0, layout.vectors * d, d)
    own = torch.stack([hessian[start : start + d, start : start + d] for start in starts])
    inverse, factor = torch.linalg.inv(own), torch.linalg.cholesky(own)
    width = max(1, BLOCK // d) * d
    for first in range(0, layout.vectors * d, width):
        # What a block changes reaches the columns behind it at once.
        end = min(first + width, layout.vectors * d)
        before = made[:, first:end].clone()
        for start in range(first, end, d):
            here, vector = slice(start, start + d), start // d
            best = made[:, here] + slope[:, here] @ inverse[vector]
            offered = codebooks[groups[:, vector]] * scales[:, here][:, None]  # (R, entries, d)
            errors = (best[:, None] - offered) @ factor[vector]
            found[:, vector] = errors.square().sum(-1).argmin(1)
            chosen = offered[rows, found[:, vector]]
            behind = slice(here.stop, end)
            slope[:, behind] -= (chosen - made[:, here]) @ hessian[here, behind]
            made[:, here] = chosen
        slope[:, end:] -= (made[:, first:end] - before) @ hessian[first:end, end:]
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
