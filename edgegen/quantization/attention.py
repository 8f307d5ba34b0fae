"""Attention with quantized products: Q·Kᵀ and probabilities·V."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn
from transformers.models.clip.modeling_clip import CLIPAttention

OPERANDS = ("query", "key", "probabilities", "value")
# Whose behaviour `QuantizedAttention` has; attention with any other processor is left alone.
REPLACED = (AttnProcessor, AttnProcessor2_0, type(None))

Operand = Callable[[torch.Tensor], torch.Tensor]


class QuantizedAttention(nn.Module):
    """An attention processor that quantizes all four operands of the products.

    All of `AttnProcessor2_0`'s behaviour beside that: group and spatial norm, 4-D inputs, masks,
    normalised cross attention, queries and keys, residual and rescaling.

    Args:
        query, key, value: quantize (B, heads, S, D); `probabilities` (B, heads, S, S').
    """

    def __init__(self, query: Operand, key: Operand, probabilities: Operand, value: Operand):
        super().__init__()
        self.query, self.key, self.probabilities, self.value = query, key, probabilities, value

    # diffusers reads this signature for the keywords that it hands on.
    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states
        if encoder_hidden_states is not None:
            context = encoder_hidden_states
            if attn.norm_cross:
                context = attn.norm_encoder_hidden_states(context)
        if attention_mask is not None:
            batch, keys, _ = context.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, keys, batch)
            assert attention_mask is not None
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        query, key, value = (
            projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, tokens in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        out = self.attend(query, key, value, attention_mask)
        out = out.transpose(1, 2).flatten(2).to(query.dtype)

        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, heads, S, D) of each, and a mask that is added, or true where may be looked."""
        scores = self.query(query) @ self.key(key).transpose(-1, -2)
        scores = scores * query.shape[-1] ** -0.5
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            scores = scores + mask
        # As in the kernels, whose accumulators are float32.
        probabilities = F.softmax(scores.float(), dim=-1).to(query.dtype)
        return self.probabilities(probabilities) @ self.value(value)

    @property
    def bits(self) -> float:
        """Of the operands."""
        operand: Any = self.query
        return float(operand.bits)

    def persist(self) -> None:
        """From now on the scales are part of the state_dict."""
        for operand in self.children():
            operand.persist()  # type: ignore[operator]


class ProcessedCLIPAttention(CLIPAttention):
    """CLIP's attention whose products its `processor` computes, as it does for diffusers' own."""

    processor: QuantizedAttention

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if attention_mask is None and kwargs.get("is_causal", self.is_causal):
            length = query.shape[-2]
            attention_mask = query.new_ones(length, length, dtype=torch.bool).tril()
        out = self.processor.attend(query, key, value, attention_mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def find_attention(module: nn.Module) -> dict[str, Attention | CLIPAttention]:
    """Path → attention in a network, those of other processors included."""
    kinds = (Attention, CLIPAttention)
    return {name: each for name, each in module.named_modules() if isinstance(each, kinds)}


def masked_plainly(attention: Any) -> bool:
    """Whether it is handed masks of (B, heads, S, S'), or none; not all of CLIP's kernels are."""
    if isinstance(attention, Attention):
        return True
    return attention.config._attn_implementation in ("eager", "sdpa")


def processor_of(attention: Any) -> Any:
    """What computes an attention's products; None for CLIP's as it comes."""
    return getattr(attention, "processor", None)


def set_processor(attention: Any, processor: Any) -> None:
    """Let it compute an attention's products; None for CLIP's own way."""
    if isinstance(attention, Attention):
        attention.set_processor(processor)
        return
    attention._modules.pop("processor", None)
    # A class, where a forward of its own would be shared with copies.
    attention.__class__ = CLIPAttention if processor is None else ProcessedCLIPAttention
    if processor is not None:
        attention.processor = processor
