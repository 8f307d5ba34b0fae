"""Weights kept as indices into codebooks of short vectors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .packing import pack, packed_bytes, unpack
from .quantizers import Precise

STRIPE = 256  # columns that a codebook reaches at least, where there are as many
BLOCK_BITS = 4  # of a block's scale, which is a power of two
CODE_BITS = 8  # of a codebook's scale, likewise
_ENTRY_BITS = 8


@dataclass(frozen=True)
class Layout:
    """Which codebook each vector of a weight is taken from.

    The weight counts as the matrix (rows, columns) = (C_out, C_in·k²), whose rows are cut into
    vectors of `dimension` values; a last one may hang over. Stripes of columns are cut into groups
    of rows, and a group has a codebook of 2^`index_bits` vectors of its own.

    Attributes:
        group: values, at least, that share a codebook, in a weight that has as many.
        block: values in a row that share a scale, or None.
    """

    rows: int
    columns: int
    dimension: int
    index_bits: int
    group: int
    block: int | None = None

    @property
    def entries(self) -> int:
        """Vectors in a codebook: k."""
        return 2**self.index_bits

    @property
    def vectors(self) -> int:
        """In a row."""
        return -(-self.columns // self.dimension)

    @property
    def blocks(self) -> int:
        """Scales of a row; 0 without any."""
        return 0 if self.block is None else -(-self.columns // self.block)

    def stripes(self) -> list[tuple[int, int, int]]:
        """(first vector, end, rows of a group) of each stripe.

        As wide as another, but for rounding, and so few that every group has its values.
        """
        unit = self.dimension if self.block is None else self.block  # a scale lies in one stripe
        width = max(STRIPE, -(-self.group // self.rows))
        number = max(1, self.columns // width)
        width = -(-self.columns // number // unit) * unit
        found = []
        for start in range(0, self.columns, width):
            end = min(start + width, self.columns)
            groups = max(1, self.rows * (end - start) // self.group)
            rows = -(-self.rows // groups)
            found.append((start // self.dimension, -(-end // self.dimension), rows))
        return found

    def groups(self, device: Any = None) -> torch.Tensor:
        """(rows, vectors): the number of the codebook."""
        found, before = [], 0
        for start, end, rows in self.stripes():
            numbers = before + torch.arange(self.rows, device=device) // rows
            found.append(numbers[:, None].expand(-1, end - start))
            before += -(-self.rows // rows)
        return torch.cat(found, 1)

    def spread(self, codes: torch.Tensor, block_range: torch.Tensor, columns: int) -> torch.Tensor:
        """Codes of blocks' scales (rows, blocks) → the scale of each value, (rows, columns)."""
        assert self.block is not None
        scales = exponential(codes, block_range)
        return scales.repeat_interleave(self.block, 1)[:, :columns]

    @property
    def codebooks(self) -> int:
        return sum(-(-self.rows // rows) for _, _, rows in self.stripes())

    @property
    def stored_bytes(self) -> int:
        """Of indices, codebooks with a scale each, blocks' scales, and what scales mean."""
        indices = packed_bytes(self.rows * self.vectors, self.index_bits)
        entries = self.codebooks * self.entries * self.dimension * _ENTRY_BITS // 8
        entries += self.codebooks * CODE_BITS // 8 + 8
        scales = 0 if self.block is None else packed_bytes(self.rows * self.blocks, BLOCK_BITS) + 8
        return indices + entries + scales


def layout_of(
    shape: torch.Size | tuple[int, ...],
    bits: int,
    dimension: int,
    codebook_bits: float,
    block: int | None = None,
) -> Layout:
    """The layout of a weight (C_out, …) with indices of `bits` a value.

    Groups are so large that codebooks take `codebook_bits` a value: k·d·8/l of GPTVQ
    (arXiv 2402.15319, section 3.2). A weight that is smaller than a group gets vectors of half the
    dimension, and so on: larger codebooks would take more than they save.
    """
    rows = shape[0]
    columns = math.prod(shape[1:])
    while True:
        group = round(2 ** (dimension * bits) * dimension * _ENTRY_BITS / codebook_bits)
        if dimension == 1 or rows * columns >= group:
            return Layout(rows, columns, dimension, dimension * bits, group, block)
        dimension //= 2


class CodebookWeight(Precise):
    """A layer's weight as indices into codebooks; called, it gives what they stand for.

    Args:
        shape: of the weight, (C_out, C_in) or (C_out, C_in, k, k).
        layout: which codebook is whose.
        indices: whole numbers (rows, vectors), from 0.
        codebooks: int8 (codebooks, entries, dimension).
        scales: whole numbers (codebooks,), from 0 to 255: exponents of the codebooks' scales.
        scale_range: float32 (2,): the least exponent of two, and the step between them.
        block_scales, block_range: those of blocks, (rows, blocks), from 0 to 15; or None.
    """

    indices: torch.Tensor
    codebooks: torch.Tensor
    scales: torch.Tensor
    scale_range: torch.Tensor
    block_scales: torch.Tensor | None
    block_range: torch.Tensor | None

    def __init__(
        self,
        shape: torch.Size | tuple[int, ...],
        layout: Layout,
        indices: torch.Tensor,
        codebooks: torch.Tensor,
        scales: torch.Tensor,
        scale_range: torch.Tensor,
        block_scales: torch.Tensor | None = None,
        block_range: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.layout = torch.Size(shape), layout
        # Around 0, as packed integers are.
        dtype = torch.int8 if layout.index_bits <= 8 else torch.int16
        indices = (indices - layout.entries // 2).to(dtype)
        self.register_buffer("indices", indices, persistent=False)
        self.register_buffer("codebooks", codebooks.to(torch.int8), persistent=False)
        scales = (scales - 2 ** (CODE_BITS - 1)).to(torch.int8)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("scale_range", scale_range, persistent=False)
        if block_scales is not None:
            block_scales = (block_scales - 2 ** (BLOCK_BITS - 1)).to(torch.int8)
        self.register_buffer("block_scales", block_scales, persistent=False)
        self.register_buffer("block_range", block_range, persistent=False)

    @classmethod
    def empty(cls, shape: torch.Size | tuple[int, ...], layout: Layout, device: Any = None) -> Any:
        """With nothing in it yet."""
        size = (layout.rows, layout.blocks)
        blocked = layout.block is not None
        return cls(
            shape,
            layout,
            torch.zeros(layout.rows, layout.vectors, dtype=torch.int32, device=device),
            torch.zeros(layout.codebooks, layout.entries, layout.dimension, device=device),
            torch.zeros(layout.codebooks, device=device),
            torch.zeros(2, device=device),
            torch.zeros(size, dtype=torch.int32, device=device) if blocked else None,
            torch.zeros(2, device=device) if blocked else None,
        )

    @property
    def bits(self) -> float:
        """Of a value, with its part in codebooks and scales."""
        return 8 * self.stored_bytes / self.shape.numel()

    @property
    def stored_bytes(self) -> int:
        return self.layout.stored_bytes

    def forward(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        layout = self.layout
        places = layout.groups(self.indices.device) * layout.entries + layout.entries // 2
        sizes = exponential(self.scales.float() + 2 ** (CODE_BITS - 1), self.scale_range)
        entries = (self.codebooks.float() * sizes[:, None, None]).flatten(0, 1)
        matrix = entries[places + self.indices.long()].flatten(1)[:, : layout.columns]
        if self.block_scales is not None and self.block_range is not None:
            codes = self.block_scales.float() + 2 ** (BLOCK_BITS - 1)
            matrix = matrix * layout.spread(codes, self.block_range, layout.columns)
        return matrix.to(dtype).reshape(self.shape)

    def describe(self) -> dict[str, Any]:
        """What `Layout` needs beside the weight's shape, as JSON holds it."""
        told = asdict(self.layout)
        return {key: told[key] for key in ("dimension", "index_bits", "group", "block")}

    def persist(self) -> None:
        """From now on part of the state_dict, packed; the indices are a parameter there."""
        indices = self.indices
        del self.indices
        self.indices = nn.Parameter(indices, requires_grad=False)
        super().persist()

    def _packed(self) -> dict[str, int]:
        return {"indices": self.layout.index_bits, "block_scales": BLOCK_BITS}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, bits in self._packed().items():
            if (name := prefix + name) in destination:
                destination[name] = pack(destination[name].detach(), bits)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        for name, bits in self._packed().items():
            own = getattr(self, name)
            if own is None or (name := prefix + name) not in state_dict:
                continue
            try:
                state_dict[name] = unpack(state_dict[name], bits, own.shape)
            except ValueError as error:
                rest[-1].append(f"{name}: {error}")
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, local, strict, missing, *rest)

    def extra_repr(self) -> str:
        layout = self.layout
        values = f"{self.bits:.3f} bits, {layout.codebooks} codebooks of {layout.entries}"
        scales = "" if layout.block is None else f", scales by {layout.block}"
        return f"{values} × {layout.dimension}{scales}"


def exponential(codes: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """The powers of two that codes stand for: `spread` is the least exponent and the step."""
    return torch.exp2(spread[0] + codes * spread[1])
