"""The processor against diffusers' own, with every option of attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPAttention

from edgegen.quantization.attention import (
    QuantizedAttention,
    masked_plainly,
    processor_of,
    set_processor,
)
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


@pytest.mark.parametrize("kernels", ["sdpa", "eager"])
def test_without_quantizers_is_clip(kernels: str) -> None:
    """Its causal mask and padding too; a copy is on its own, and taken out nothing is left."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=9,
        attn_implementation=kernels,
    )
    text: Any = CLIPTextModel(config).eval()
    tokens = torch.randint(50, (3, 9))
    padding = torch.ones(3, 9, dtype=torch.long)
    padding[1:, 6:] = 0
    plain = [text(tokens, attention_mask=mask)[0] for mask in (None, padding)]
    layers = [module for module in text.modules() if isinstance(module, CLIPAttention)]
    assert len(layers) == 2
    for layer in layers:
        assert processor_of(layer) is None
        set_processor(layer, QuantizedAttention(*(nn.Identity() for _ in range(4))))
    other = copy.deepcopy(text)
    for mask, expected in zip((None, padding), plain, strict=True):
        for each in (text, other):
            found = each(tokens, attention_mask=mask)[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for layer in layers:
        set_processor(layer, None)
    assert all(type(layer) is CLIPAttention for layer in layers)
    assert not any("processor" in name for name, _ in text.named_modules())
    assert torch.equal(text(tokens)[0], plain[0])
    coarse = QuantizedAttention(*(DynamicQuantizer(Grid(2)) for _ in range(4)))
    set_processor(layers[0], coarse)
    assert not torch.allclose(text(tokens)[0], plain[0], atol=1e-3)
    assert torch.allclose(other(tokens)[0], plain[0], atol=1e-5)
    assert masked_plainly(layers[0])
    text.config._attn_implementation = "flex_attention"  # whose masks are no tensors
    assert not masked_plainly(layers[0])


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
