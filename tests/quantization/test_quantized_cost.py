"""Cost of quantized pipelines: BOPs and stored bytes against sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantization_models import draw, make_unet, unet_inputs

from edgegen.cost import CostTracker, count
from edgegen.quantization import quantize_, quantized
from edgegen.quantization.packing import packed_bytes


def test_bops(pipe: Any, calls: Any) -> None:
    """MACs × 4 × 8 in all layers but the ends (8 × 8), attention products at 6 × 6."""
    plain = count(pipe.unet, *unet_inputs())
    with quantized(pipe, "w4a8", attention=6, calls=calls):
        cost = count(pipe.unet, *unet_inputs())
    assert (cost.macs_all, cost.macs_conv_linear) == (plain.macs_all, plain.macs_conv_linear)
    ends = sum(plain.modules[name].macs_conv_linear for name in ("conv_in", "conv_out"))
    inner = plain.macs_conv_linear - ends
    assert cost.bops == 32 * inner + 64 * ends + 36 * plain.total.attention
    assert plain.bops == 1024 * plain.macs_all
    assert cost.uncounted == plain.uncounted
    assert cost.params == plain.params


@pytest.mark.parametrize("for_good", [False, True])
def test_stored_bytes(pipe: Any, calls: Any, for_good: bool) -> None:
    """Packed integers, a float32 scale an output channel, two numbers for each input, biases."""
    unet = pipe.unet
    expected = 0
    layers = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for layer in layers:
        bits = 8 if layer in (unet.conv_in, unet.conv_out) else 4
        expected += packed_bytes(layer.weight.numel(), bits) + 4 * len(layer.weight) + 8
        expected += 0 if layer.bias is None else layer.bias.nbytes
    norms = sum(
        p.nbytes for m in unet.modules() if "Norm" in type(m).__name__ for p in m.parameters()
    )
    settings = {"activations": {"split_skips": False}}
    if for_good:
        report = quantize_(pipe, "w4a8", calls=calls, **settings)
        cost = count(unet, *unet_inputs())
    else:
        with quantized(pipe, "w4a8", calls=calls, **settings) as report:
            cost = count(unet, *unet_inputs())
    assert report.stored_bytes == expected
    assert cost.stored_bytes == expected + norms
    assert cost.params >= sum(layer.weight.numel() for layer in layers)


def test_tracker_tells_quantized_calls_apart(pipe: Any, calls: Any) -> None:
    with CostTracker(pipe) as tracker:
        draw(pipe)
        with quantized(pipe, "w8a8", calls=calls):
            draw(pipe)
    bops = [tracker._costs[call.key].bops for call in tracker.calls if call.part == "unet"]
    assert len(set(bops)) == 2
    assert bops[0] > 10 * bops[-1]


def test_without_weights() -> None:
    """On `meta`: the cost of a quantized model that never was."""
    with torch.device("meta"):
        unet = make_unet()
        inputs = [t.to("meta") for t in unet_inputs()]
    with quantized(unet, "w4a4", attention=4, weights={"rounding": "gptq"}, bias_correction=True):
        cost = count(unet, *inputs)
    real = make_unet()
    with quantized(real, "w4a4", attention=4, activations={"dynamic": True}):
        expected = count(real, *unet_inputs())
    assert cost.bops == expected.bops
    assert cost.stored_bytes > expected.stored_bytes  # the static scales
