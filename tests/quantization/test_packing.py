"""Packed integers."""

from __future__ import annotations

import pytest
import torch

from edgegen.quantization.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 3, 3), (16, 8)])
def test_there_and_back(bits: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x = torch.randint(low, high + 1, shape, generator=generator)
    x.view(-1)[:2] = torch.tensor([low, high])[: x.numel()]
    packed = pack(x.to(torch.int8 if bits <= 8 else torch.int16), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(x.numel(), bits) == -(-x.numel() * bits // 8)
    back = unpack(packed, bits, x.shape)
    assert back.dtype == (torch.int16 if bits == 16 else torch.int8)
    assert torch.equal(back.long(), x)


def test_two_int4_a_byte() -> None:
    """The first in the lower half, in two's complement."""
    assert pack(torch.tensor([3, -2, 7]), 4).tolist() == [3 | 14 << 4, 7]
    assert pack(torch.tensor([-128, 127]), 8).tolist() == [128, 127]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        pack(torch.tensor([8]), 4)
    with pytest.raises(ValueError, match="3 integers of 4 bits take 2 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (3,))
