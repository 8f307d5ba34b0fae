"""Anchored attention: the keys and values of the anchors stand beside every frame's own.

FAIRY (arXiv 2312.13834): anchors are denoised together, each attending to all of them, and their
keys and values are kept, for every self-attention layer, step and guidance branch, in a bank. Every
other frame then computes softmax(Q [K_own, K_anchors]ᵀ/√d) [V_own, V_anchors].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..cost.modes import cost_mode, uncompiled

Mode = Literal["plain", "record", "attend"]
Probe = Callable[[str, int, Sequence[int], torch.Tensor], None]
"""Called with the layer, the step, the numbers of the frames in the batch, and the attention of
their tokens, (branches, frames, T, K) with rows of sum 1, the mean over the heads: keys are the
frame's own T, if it sees them, then those of the anchors, anchor by anchor."""
# Processors whose result ours repeats. Others do something of their own, which would be lost.
_KNOWN = ("AttnProcessor2_0", "AttnProcessor", "XFormersAttnProcessor", "SlicedAttnProcessor")
_SELF_ATTENTION = "attn1.processor"


class Bank:
    """Keys and values of the anchors; one object that all attention layers of a UNet share.

    Attributes:
        mode: `plain`: layers work as without a bank. `record`: the batch holds the anchors, which
            attend to each other, and their keys and values are kept. `attend`: the batch holds
            other frames, which attend to the anchors.
        step: number of the denoising step.
        branches: guidance branches in the batch, which is (branches · frames, …), branch by branch.
        own: whether frames attend to their own keys and values too.
        frames: numbers of the frames in the batch.
        probe: is shown the attention to the anchors, which it takes to compute it once more; None
            for nobody.
    """

    def __init__(self, own: bool = True) -> None:
        self.mode: Mode = "plain"
        self.step = 0
        self.branches = 1
        self.own = own
        self.frames: Sequence[int] = ()
        self.probe: Probe | None = None
        self._kept: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(self, layer: str, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep what the anchors gave in this layer and step: (branches, anchors · tokens, C)."""
        self._kept[self.step, layer] = (key, value)

    def get(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The anchors' keys and values in this layer and step, (branches, anchors · tokens, C).

        Raises RuntimeError where none were kept.
        """
        found = self._kept.get((self.step, layer))
        if found is None:
            raise RuntimeError(
                f"the anchors left nothing in {layer} at step {self.step}: a method skipped it for "
                "them, but not for the frames; its clock must depend on the step alone"
            )
        return found

    def forget(self, step: int | None = None) -> None:
        """Let go of what was kept of one step, or of all."""
        for key in [key for key in self._kept if step is None or key[0] == step]:
            del self._kept[key]

    def steps(self) -> list[int]:
        """The steps of which something is kept, rising."""
        return sorted({step for step, _ in self._kept})

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(part.nbytes for pair in self._kept.values() for part in pair)


class AnchoredAttention:
    """A processor for one self-attention layer; does what `AttnProcessor2_0` does, and the bank.

    Args:
        bank: shared with the other layers.
        layer: the layer's key in the UNet's `attn_processors`.
        original: the processor it stands in for, which runs in the mode `plain`.
    """

    def __init__(self, bank: Bank, layer: str, original: Any) -> None:
        self.bank = bank
        self.layer = layer
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        bank = self.bank
        if bank.mode == "plain" or encoder_hidden_states is not None:
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
        if attention_mask is not None:
            raise ValueError(f"{self.layer}: anchored attention takes no attention mask")
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        query = attn.to_q(hidden_states)
        key, value = self._keys_and_values(attn, hidden_states)
        # What sees the same keys is one sequence: then nothing is copied for each frame.
        query = query.reshape(key.shape[0], -1, query.shape[-1])
        query, key, value = (_heads(each, attn.heads) for each in (query, key, value))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if bank.probe is not None and bank.mode == "attend":
            self._show(bank.probe, query, key)
        out = F.scaled_dot_product_attention(query, key, value)
        out = out.transpose(1, 2).reshape(hidden_states.shape[0], hidden_states.shape[1], -1)
        out = attn.to_out[1](attn.to_out[0](out.to(query.dtype)))

        if len(shape) == 4:
            out = out.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def _show(self, probe: Probe, query: torch.Tensor, key: torch.Tensor) -> None:
        """Of (B, heads, T, C / heads) queries and keys."""
        weights: torch.Tensor | float = 0.0
        for one in range(query.shape[1]):  # head by head: all of them at once may be gigabytes
            scores = query[:, one].float() @ key[:, one].float().transpose(1, 2)
            weights = weights + (scores / query.shape[-1] ** 0.5).softmax(-1) / query.shape[1]
        assert isinstance(weights, torch.Tensor)
        frames = len(self.bank.frames)
        branches = len(query) // (frames if self.bank.own else 1)
        shape = branches, frames, -1, weights.shape[-1]
        probe(self.layer, self.bank.step, self.bank.frames, weights.reshape(shape))

    def _frames(self, hidden_states: torch.Tensor) -> int:
        return len(self.bank.frames) or hidden_states.shape[0] // self.bank.branches

    def _keys_and_values(
        self, attn: Any, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C) each: B guidance branches, or branches times frames where each sees its own."""
        bank = self.bank
        if bank.mode == "attend" and not bank.own:
            return bank.get(self.layer)
        own = attn.to_k(hidden_states), attn.to_v(hidden_states)
        if bank.mode == "record":
            # Behind a gate there may be one branch alone.
            branches = hidden_states.shape[0] // self._frames(hidden_states)
            pooled = tuple(each.reshape(branches, -1, each.shape[-1]) for each in own)
            bank.keep(self.layer, *pooled)
            return pooled[0], pooled[1]
        frames = self._frames(hidden_states)
        key, value = (
            torch.cat([mine, anchors.repeat_interleave(frames, 0)], 1)
            for mine, anchors in zip(own, bank.get(self.layer), strict=True)
        )
        return key, value


@contextmanager
def anchored_attention(unet: Any, own: bool = True) -> Iterator[Bank]:
    """Replace the self-attention of a UNet by anchored attention while this is open.

    The bank begins in the mode `plain`, in which nothing changes. On exit the UNet has its own
    processors back.

    Args:
        unet: a diffusers UNet.
        own: whether frames attend to themselves beside the anchors (FAIRY) or to the anchors alone
            (MoViE; Text2Video-Zero with the first frame as the anchor).

    Raises:
        ValueError: no self-attention, fused projections, or processors of another kind.
    """
    unet = uncompiled(unet)
    before = dict(getattr(unet, "attn_processors", {}))
    layers = [name for name in before if name.endswith(_SELF_ATTENTION)]
    if not layers:
        raise ValueError(f"{type(unet).__name__} has no self-attention that anchors could enter")
    for name in layers:
        kind = type(before[name]).__name__
        if kind not in _KNOWN:
            raise ValueError(f"{name} is a {kind}: anchored attention stands in for {_KNOWN[0]}")
    bank = Bank(own)
    ours = {name: AnchoredAttention(bank, name, before[name]) for name in layers}
    unet.set_attn_processor({**before, **ours})
    try:
        with cost_mode(unet, lambda: bank.mode):
            yield bank
    finally:
        bank.forget()
        unet.set_attn_processor(dict(before))


def bank_bytes(unet: Any, size: tuple[int, int]) -> int:
    """Bytes that a bank holds for one anchor, one guidance branch and one step.

    Args:
        unet: a diffusers UNet; on `meta` too.
        size: height and width of the latents.
    """
    levels = len(unet.down_blocks)
    total = 0
    for name in unet.attn_processors:
        if not name.endswith(_SELF_ATTENTION):
            continue
        side, number = name.split(".")[:2]
        level = levels - 1  # the middle
        if side == "down_blocks":
            level = int(number)
        elif side == "up_blocks":
            level = levels - 1 - int(number)
        height, width = size
        for _ in range(level):
            height, width = -(-height // 2), -(-width // 2)
        attn = unet.get_submodule(name.removesuffix(".processor"))
        total += height * width * (attn.to_k.out_features + attn.to_v.out_features)
    return total * unet.dtype.itemsize


def _heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, T, C) → (B, heads, T, C / heads)."""
    return tokens.view(tokens.shape[0], -1, heads, tokens.shape[-1] // heads).transpose(1, 2)
