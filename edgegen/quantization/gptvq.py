"""GPTVQ (arXiv 2402.15319): vector quantization whose error later columns make good.

The loss is tr((W−Ŵ)·H·(W−Ŵ)ᵀ). With H⁻¹ = UᵀU, the columns to the right make good all but
‖e·U_pp⁻¹‖² of the error e of a vector of columns p, U_pp being its d×d block of U: that is what
vectors are assigned and codebooks fitted by. In one dimension it is (e / U_jj)²; in more, the paper
takes its diagonal alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .codebook_update import refine
from .codebooks import BLOCK_BITS, CODE_BITS, CodebookWeight, Layout, exponential
from .gptq import damped, feedback_of

ROUNDS = 50  # of assigning and fitting
FIRST_ROUNDS = 20  # where codebooks are updated afterwards: more gain less than a hundredth
REVISITS = 3  # of all assignments, which the paper makes once
_OCTAVES = 8.0  # that the scales of blocks, and of codebooks, may span
_SMALLEST = 1e-30


@torch.no_grad()
def quantize_vectors(
    weight: torch.Tensor, layout: Layout, hessian: torch.Tensor | None = None
) -> CodebookWeight:
    """Indices and codebooks of a weight (C_out, …).

    Args:
        hessian: (K, K) with K = C_in·k²; without it, k-means on the weights alone.

    Raises:
        ValueError: a Hessian that is not finite.
    """
    surplus = layout.vectors * layout.dimension - layout.columns
    rows = F.pad(weight.detach().float().reshape(layout.rows, layout.columns), (0, surplus))
    if hessian is None:
        steady = feedback = torch.eye(rows.shape[1], device=rows.device)
    else:
        steady = _padded(damped(hessian).float(), surplus)
        feedback = feedback_of(steady)
    block_range = None if layout.block is None else _block_range(rows, layout)
    target, codes, indices, codebooks = rows.clone(), [], [], []
    for start, end, size in layout.stripes():
        here = slice(start * layout.dimension, end * layout.dimension)
        scales = torch.ones_like(rows[:, here])
        if block_range is not None:
            code = _block_codes(rows[:, here], layout, block_range)
            codes.append(code)
            scales = layout.spread(code, block_range, scales.shape[1])
        stripe = _Stripe(scales, feedback[here, here], layout, size)
        rounds = ROUNDS if hessian is None else FIRST_ROUNDS
        codebook = stripe.fit(rows[:, here], rounds)
        found, errors = stripe.assign(rows[:, here], codebook, feeds=hessian is not None)
        indices.append(found)
        codebooks.append(codebook)
        if hessian is not None:
            rows[:, here.stop :] -= errors @ feedback[here, here.stop :]
    chosen, books = torch.cat(indices, 1), torch.cat(codebooks)
    block_scales = torch.cat(codes, 1) if codes else None
    if hessian is not None:
        spread = torch.ones_like(target)
        if block_scales is not None and block_range is not None:
            spread = layout.spread(block_scales, block_range, target.shape[1])
        books, chosen = refine(books, chosen, layout, spread, target, steady, REVISITS)
    return CodebookWeight(weight.shape, layout, chosen, *_rounded(books), block_scales, block_range)


def _rounded(codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codebooks in int8, the codes of their scales (codebooks,), and what those mean, (2,)."""
    exponents = (codebooks.abs().amax((1, 2)) / 127).clamp(min=_SMALLEST).log2()
    high = exponents.amax()
    low = torch.maximum(exponents.amin(), high - _OCTAVES)
    spread = torch.stack([low, (high - low) / (2**CODE_BITS - 1)])
    codes = (exponents - low) / spread[1].clamp(min=_SMALLEST)
    codes = (codes - 1e-3).ceil().clamp(0, 2**CODE_BITS - 1)  # upwards: nothing is clipped
    sizes = exponential(codes, spread)[:, None, None]
    return (codebooks / sizes).round().clamp(-127, 127), codes, spread


class _Stripe:
    """A stripe of columns, whose groups of rows have a codebook each.

    Args:
        scales: (R, width).
        feedback: (width, width), of U.
        size: rows of a group.
    """

    def __init__(
        self, scales: torch.Tensor, feedback: torch.Tensor, layout: Layout, size: int
    ) -> None:
        self.layout, self.scales, self.feedback, self.size = layout, scales, feedback, size
        self.rows, d = len(scales), layout.dimension
        self.number = -(-self.rows // size)  # of groups
        self.vectors = scales.shape[1] // d
        starts = range(0, scales.shape[1], d)
        own = torch.stack([feedback[a : a + d, a : a + d] for a in starts])
        unit = torch.eye(d, device=own.device)
        # (vectors, d, d): what turns an error into what is left of it.
        self.whiten = torch.linalg.solve_triangular(own, unit.expand_as(own), upper=True)

    def fit(self, columns: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
        """Codebooks (groups, entries, d) by expectation and maximization with weights."""
        d = self.layout.dimension
        points = self._grouped(columns / self.scales)  # (G, rows, V, d)
        sizes = self._grouped(self.scales)[..., :1].square()
        metric = self.whiten @ self.whiten.transpose(1, 2)
        metric = metric / metric.diagonal(dim1=1, dim2=2).mean()
        weights = (sizes[..., None] * metric).flatten(3)  # (G, rows, V, d·d)
        moved = (points[..., None, :] @ weights.unflatten(-1, (d, d))).squeeze(-2)
        codebook = _first_codebooks(points, sizes, self.layout)
        flat, before = (self.number, -1), None
        own = _whitened(points, self.whiten)
        for _ in range(rounds):
            found = _nearest(own, codebook, self.whiten)
            if before is not None and torch.equal(found, before):
                break
            before = found
            place = found.reshape(flat)[..., None]
            total = _summed(place, weights.reshape(*flat, d * d), codebook.shape[1])
            moment = _summed(place, moved.reshape(*flat, d), codebook.shape[1])
            used = total[..., :1] > 0
            total = torch.where(used, total, torch.eye(d, device=total.device).flatten())
            moment = torch.where(used, moment, codebook)
            total = total.double().unflatten(-1, (d, d))
            codebook = torch.linalg.solve(total, moment.double()).float()
        return codebook

    def assign(
        self, columns: torch.Tensor, codebook: torch.Tensor, feeds: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (R, V), and errors (R, width) that are to be fed to the columns behind."""
        if not feeds:
            points = _whitened(self._grouped(columns / self.scales), self.whiten)
            found = _nearest(points, codebook, self.whiten)
            return found.flatten(0, 1)[: self.rows], columns
        d, rest = self.layout.dimension, columns.clone()
        groups = torch.arange(self.rows, device=rest.device) // self.size
        indices, errors = [], torch.empty_like(rest)
        for vector in range(self.vectors):
            here = slice(vector * d, vector * d + d)
            # With what the columns before have fed back: not as it was when the stripe began.
            whiten = self.whiten[vector : vector + 1]
            points = _whitened(self._grouped(rest[:, here] / self.scales[:, here]), whiten)
            index = _nearest(points, codebook, whiten).reshape(-1)[: self.rows]
            indices.append(index)
            error = rest[:, here] - codebook[groups, index] * self.scales[:, here]
            error = error @ self.whiten[vector]
            rest[:, here.stop :] -= error @ self.feedback[here, here.stop :]
            errors[:, here] = error
        return torch.stack(indices, 1), errors

    def _grouped(self, matrix: torch.Tensor) -> torch.Tensor:
        """(R, V·d) → (groups, rows, V, d), the last group filled up with zeros."""
        surplus = self.number * self.size - len(matrix)
        filled = F.pad(matrix, (0, 0, 0, surplus))
        return filled.reshape(self.number, self.size, -1, self.layout.dimension)


def _whitened(points: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
    """(groups, rows, V, d) to (groups, V, rows, d), in which distances are what is left."""
    return points.transpose(1, 2) @ whiten


def _nearest(own: torch.Tensor, codebook: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
    """Indices (groups, rows, V) of those that leave the least error.

    Args:
        own: (groups, V, rows, d), as `_whitened` gives them.
        codebook: (groups, entries, d).
        whiten: (V, d, d).
    """
    entries = codebook[:, None] @ whiten  # (G, V, entries, d)
    half = 0.5 * entries.square().sum(-1)[:, :, None]
    return (half - own @ entries.transpose(2, 3)).argmin(-1).transpose(1, 2)


def _first_codebooks(points: torch.Tensor, sizes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Where to start: quantiles of each coordinate, combined; (groups, entries, d)."""
    d = layout.dimension
    levels = round(layout.entries ** (1 / d))
    shares = (torch.arange(levels, device=points.device) + 0.5) / levels
    # Padding of the last group counts as zeros: near enough to begin with.
    values = (points * (sizes > 0)).reshape(len(points), -1, d).sort(dim=1).values
    places = (shares * values.shape[1]).long().clamp(max=values.shape[1] - 1)
    quantiles = values[:, places]  # (G, levels, d)
    grid = torch.cartesian_prod(*[torch.arange(levels, device=points.device)] * d).view(-1, d)
    return torch.stack([quantiles[:, grid[:, axis], axis] for axis in range(d)], -1)


def _summed(place: torch.Tensor, values: torch.Tensor, entries: int) -> torch.Tensor:
    """(G, n, …) → (G, entries, …): the sums over those in one place."""
    zeros = values.new_zeros(len(values), entries, values.shape[-1])
    return zeros.scatter_add_(1, place.expand_as(values), values)


def _padded(hessian: torch.Tensor, surplus: int) -> torch.Tensor:
    """With columns that hardly count."""
    if not surplus:
        return hessian
    padded = F.pad(hessian, (0, surplus, 0, surplus))
    padded.diagonal()[-surplus:] = 1e-3 * hessian.diagonal().mean()
    return padded


def _block_maxima(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    assert layout.block is not None
    filled = F.pad(rows.abs(), (0, -rows.shape[1] % layout.block))
    return filled.unflatten(1, (-1, layout.block)).amax(2)


def _block_range(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The least exponent of blocks' scales and the step between them, (2,)."""
    exponents = _block_maxima(rows, layout).clamp(min=_SMALLEST).log2()
    high = exponents.amax()
    low = torch.maximum(exponents.amin(), high - _OCTAVES)  # a block of zeros needs no scale
    return torch.stack([low, (high - low) / (2**BLOCK_BITS - 1)])


def _block_codes(rows: torch.Tensor, layout: Layout, block_range: torch.Tensor) -> torch.Tensor:
    exponents = _block_maxima(rows, layout).clamp(min=_SMALLEST).log2()
    codes = (exponents - block_range[0]) / block_range[1].clamp(min=_SMALLEST)
    return codes.round().clamp(0, 2**BLOCK_BITS - 1)
