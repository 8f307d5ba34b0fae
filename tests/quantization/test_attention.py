"""The processor against diffusers' own, with every option of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from edgegen.quantization.attention import QuantizedAttention
from edgegen.quantization.grids import Grid
from edgegen.quantization.quantizers import DynamicQuantizer

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "cross": ({"cross_attention_dim": 6}, {"encoder_hidden_states": (2, 5, 6)}),
    "normalised cross": (
        {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
        {"encoder_hidden_states": (2, 5, 6)},
    ),
    "masked": ({}, {"attention_mask": (2, 1, 9)}),
    "pictures": (
        {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0},
        {},
    ),
    "normalised queries": ({"qk_norm": "layer_norm"}, {}),
    "spatial norm": ({"spatial_norm_dim": 3}, {"temb": (2, 3, 3, 3)}),
}


def attention(name: str) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    made, given = OPTIONS[name]
    torch.manual_seed(0)
    attn = Attention(32, heads=2, dim_head=8, bias=True, **made).eval()
    pictures = name in ("pictures", "spatial norm")
    x = torch.randn(2, 32, 3, 3) if pictures else torch.randn(2, 9, 32)
    return attn, x, {key: torch.randn(shape) for key, shape in given.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_without_quantizers_is_diffusers(name: str) -> None:
    attn, x, given = attention(name)
    assert isinstance(attn.processor, AttnProcessor2_0)
    expected = attn(x, **given)
    attn.set_processor(QuantizedAttention(*(nn.Identity() for _ in range(4))))
    torch.testing.assert_close(attn(x, **given), expected, rtol=1e-5, atol=1e-6)


def test_quantizes_all_four_operands() -> None:
    """Against the formula, with torch's fake quantization."""
    attn, x, _ = attention("plain")
    operands = [DynamicQuantizer(Grid(3, symmetric=False)) for _ in range(4)]
    attn.set_processor(QuantizedAttention(*operands))

    def put(t: torch.Tensor) -> torch.Tensor:
        low, high = min(t.min().item(), 0), max(t.max().item(), 0)
        scale = (high - low) / 7
        return torch.fake_quantize_per_tensor_affine(t, scale, -4 - round(low / scale), -4, 3)

    q, k, v = (
        layer(x).view(2, 9, 2, 8).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    probabilities = (put(q) @ put(k).mT / 8**0.5).softmax(-1)
    out = (put(probabilities) @ put(v)).transpose(1, 2).reshape(2, 9, 16)
    torch.testing.assert_close(attn(x), attn.to_out[0](out), rtol=1e-4, atol=1e-5)
