"""Quantized twins of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgegen.quantization.grids import Grid
from edgegen.quantization.modules import twin_of
from edgegen.quantization.quantizers import DynamicQuantizer, StaticQuantizer
from edgegen.quantization.weights import IntegerWeight, round_to_nearest, weight_scales

LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(6, 5),
    "linear without bias": lambda: nn.Linear(6, 5, bias=False),
    "conv": lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, dilation=2, bias=False),
}


def layer_and_input(name: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    return layer, torch.randn(2, 7, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 8, 8)


def stored_weight(layer: Any, bits: int = 4) -> IntegerWeight:
    grid = Grid(bits)
    scales = weight_scales(layer.weight, grid, "channel", None, "minmax")
    return IntegerWeight(round_to_nearest(layer.weight, scales, grid, None), *scales, grid)


@pytest.mark.parametrize("name", LAYERS)
def test_integers_of_weight_and_input_multiply_to_the_output(name: str) -> None:
    """int64 arithmetic on both grids, zero point and all, gives what the simulation gives."""
    layer, x = layer_and_input(name)
    scale, zero = 0.03, 5
    inputs = StaticQuantizer(Grid(8, False), torch.tensor([[scale]]), torch.tensor([[float(zero)]]))
    twin = twin_of(layer, stored_weight(layer), inputs)
    q = (torch.round(x * (1 / torch.tensor(scale))) + zero).clamp(-128, 127).double() - zero
    integers = twin.stored.integers.double()
    if isinstance(layer, nn.Linear):
        sums = F.linear(q, integers)
        shape: tuple[int, ...] = (-1,)
    else:
        plain = layer.bias
        layer.bias = None
        sums = layer._conv_forward(q, integers, None)
        layer.bias = plain
        shape = (-1, 1, 1)
    assert torch.equal(sums, sums.round())
    expected = sums * scale * twin.stored.scale[:, 0].double().view(shape)
    if layer.bias is not None:
        expected = expected + layer.bias.double().view(shape)
    torch.testing.assert_close(twin(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_shares_parameters_and_names(name: str) -> None:
    layer, x = layer_and_input(name)
    twin = twin_of(layer, stored_weight(layer), DynamicQuantizer(Grid(8)))
    assert twin.weight is layer.weight
    assert twin.bias is layer.bias
    assert list(twin.state_dict()) == list(layer.state_dict())
    assert isinstance(twin, type(layer))
    assert not torch.equal(twin(x), layer(x))


def test_nothing_quantized_is_the_layer() -> None:
    for name in LAYERS:
        layer, x = layer_and_input(name)
        assert torch.equal(twin_of(layer)(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("corrected", [False, True])
def test_for_good(name: str, corrected: bool) -> None:
    """The same output without the weight, and again from its state_dict, packed."""
    layer, x = layer_and_input(name)
    made = []
    for _ in range(2):
        inputs = StaticQuantizer(Grid(8), torch.tensor([[0.1]]), None)
        made.append(twin_of(layer, stored_weight(layer), inputs))
    twin, other = made
    if corrected:
        twin.correction = torch.linspace(-1, 1, twin.out_width)
    expected, size = twin(x), twin.stored_bytes
    twin.persist()
    assert "weight" not in dict(twin.named_parameters())
    assert torch.equal(twin(x), expected)
    assert torch.equal(twin.weight, twin.stored())
    assert twin.weight.shape == layer.weight.shape
    state = twin.state_dict()
    assert sum(tensor.nbytes for tensor in state.values()) == twin.stored_bytes == size
    other.persist()
    if corrected and other.bias is None:
        other.bias = nn.Parameter(torch.zeros(other.out_width))
    other.stored.integers.data.zero_()
    other.inputs.scale.zero_()
    other.load_state_dict({key: value.clone() for key, value in state.items()})
    assert torch.equal(other(x), expected)


def test_hooks_of_the_layer_go_on() -> None:
    layer, x = layer_and_input("linear")
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda *all: seen.append(all[2]))
    twin = twin_of(layer, stored_weight(layer))
    out = twin(x)
    assert len(seen) == 1
    assert seen[0] is out
    handle.remove()
    twin(x)
    assert len(seen) == 1


def test_bits_without_quantizers() -> None:
    layer, _ = layer_and_input("linear")
    assert (twin_of(layer).weight_bits, twin_of(layer.half()).act_bits) == (32, 16)
