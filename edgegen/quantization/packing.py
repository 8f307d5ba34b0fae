"""Integers of few bits, packed without gaps: two of 4 bits a byte, eight of 3 bits in three."""

from __future__ import annotations

import torch


def packed_bytes(values: int, bits: int) -> int:
    """Bytes that so many integers take."""
    return (values * bits + 7) // 8


def pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed integers of any shape → uint8 (packed_bytes,).

    Each value is stored in two's complement, the lowest bit first, and starts where the one before
    it ends.

    Raises:
        ValueError: a value that these bits do not hold.
    """
    flat = integers.reshape(-1)
    if flat.numel() and not flat.is_meta:
        low, high = int(flat.min()), int(flat.max())
        if low < -(2 ** (bits - 1)) or high >= 2 ** (bits - 1):
            raise ValueError(f"integers from {low} to {high} do not fit {bits} bits")
    if bits == 8:
        return flat.to(torch.int8).view(torch.uint8).clone()
    places = torch.arange(bits, device=flat.device)
    ones = ((flat.int()[:, None] >> places) & 1).to(torch.uint8).reshape(-1)
    ones = torch.nn.functional.pad(ones, (0, -len(ones) % 8)).view(-1, 8)
    weights = (1 << torch.arange(8, device=flat.device)).to(torch.uint8)
    return (ones * weights).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """What `pack` was given: int8 (int16 above 8 bits) of `shape`.

    Raises:
        ValueError: another number of bytes than `shape` needs.
    """
    values = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (packed_bytes(values, bits),):
        raise ValueError(
            f"{values} integers of {bits} bits take {packed_bytes(values, bits)} bytes, found "
            f"{packed.dtype} {tuple(packed.shape)}"
        )
    if bits == 8:
        return packed.view(torch.int8).clone().view(shape)
    ones = (packed[:, None] >> torch.arange(8, device=packed.device).to(torch.uint8)) & 1
    ones = ones.reshape(-1)[: values * bits].view(values, bits)
    weights = 1 << torch.arange(bits, device=packed.device, dtype=torch.int32)
    weights[-1] *= -1  # two's complement
    found = (ones.int() * weights).sum(1, dtype=torch.int32)
    return found.to(torch.int8 if bits <= 8 else torch.int16).view(shape)
