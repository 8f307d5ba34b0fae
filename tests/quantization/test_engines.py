"""Integers that are executed, against integers written out and against full precision."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from quantization_models import draw, make_pipe, unet_inputs
from torch import nn
from torch._inductor.utils import run_and_get_code

import edgegen
from edgegen.cost import count
from edgegen.quantization import executed, quantize_, torchao_quantized
from edgegen.quantization.engines import Executor, frozen, inputs_of, int8_graph
from edgegen.sampling.steps import bound_by

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


def decibels(out: torch.Tensor, truth: torch.Tensor) -> float:
    return float(10 * torch.log10(truth.square().sum() / (out - truth).square().sum()))


def test_calls_become_batches(calls: Any) -> None:
    """All samples in their order, each with its timestep; the last batch filled up."""
    found = inputs_of(calls, 3)
    samples = torch.cat([call.args[0] for call in calls])
    times = [call.time for call in calls for _ in call.args[0]]
    assert [len(each) for batch in found for each in batch] == [3] * (3 * len(found))
    joined = torch.cat([batch[0] for batch in found])
    assert torch.equal(joined[: len(samples)], samples)
    assert torch.cat([batch[1] for batch in found])[: len(times)].tolist() == times
    assert 0 <= len(joined) - len(samples) < 3
    assert inputs_of([], 3) == []


def test_any_number_of_samples() -> None:
    """A graph for three samples, here the plain UNet, called with one, three and seven."""
    unet = make_pipe().unet
    executor = Executor(unet, 3, compiled=False)
    for batch in (1, 3, 7):
        sample, time, text = unet_inputs(batch)
        with torch.no_grad():
            expected = unet(sample, time, text).sample
        torch.testing.assert_close(executor(sample, time, text), expected)


class Layers(nn.Module):
    """A linear layer and a convolution, in the form of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(16, 12)

    def forward(self, sample: Any, timestep: Any, text: Any, return_dict: bool = False) -> Any:
        del timestep, return_dict
        return self.linear(text), self.conv(sample)


@pytest.fixture(scope="module")
def layers() -> tuple[nn.Module, nn.Module, Any]:
    layers = Layers().eval()
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.zeros(2),
        torch.randn(2, 5, 16, generator=generator),
    )
    return layers, int8_graph(layers, [inputs]), inputs


def quantized_inputs(graph: Any) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the inputs' quantizers, from the graph."""
    found = {}
    for node in graph.graph.nodes:
        if "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target):
            found[str(node.args[0])] = (float(node.args[1]), int(node.args[2]))
    return found


def check_integers(outs: Any, layers: Any, graph: Any, inputs: Any) -> None:
    """Outputs of linear layer and convolution are int32 sums of integers, exactly, times scales."""
    scales = quantized_inputs(graph)
    for layer, x, out in ((layers.linear, inputs[2], outs[0]), (layers.conv, inputs[0], outs[1])):
        name = next(
            key for key in scales if ("text" if layer is layers.linear else "sample") in key
        )
        scale, zero = scales[name]
        x_int = (x * (1.0 / scale)).round().add(zero).clamp(0, 255).int() - zero
        dims = tuple(range(1, layer.weight.dim()))
        w_scale = (layer.weight.detach().abs().amax(dims) / 127.5).clamp(min=1e-12)
        shape = (-1, *(1,) * len(dims))
        w_int = (layer.weight.detach() * (1.0 / w_scale.view(shape))).round().clamp(-128, 127).int()
        if layer is layers.linear:
            sums, shape = F.linear(x_int.double(), w_int.double()), (1, -1)
        else:
            sums, shape = F.conv2d(x_int.double(), w_int.double(), padding=1), (1, -1, 1, 1)
        factor = scale * w_scale.double().view(shape)
        got = (out.double() - layer.bias.detach().double().view(shape)) / factor
        assert sums.abs().max() > 1000
        assert torch.equal(got.round(), sums)
        assert (got - sums).abs().max() < 0.1  # what the floats behind them round away


@needs_torchao
def test_simulated_layers_are_those_integers(layers: Any) -> None:
    plain, graph, inputs = layers
    with torch.no_grad():
        outs = graph(*inputs, return_dict=False)
    check_integers(outs, plain, graph, inputs)


@needs_torchao
@pytest.mark.slow
def test_executed_layers_are_those_integers(layers: Any) -> None:
    """Kernels give int32 sums with scales: the rounding of floats is all that differs."""
    plain, graph, inputs = layers
    torch._dynamo.reset()
    run = frozen(graph)
    with torch.no_grad():
        outs, codes = run_and_get_code(run, *inputs, return_dict=False)
    assert "int8_t" in "".join(codes)  # oneDNN's kernel or a template, whichever is quicker here
    assert "qconv" in "".join(codes)
    check_integers(outs, plain, graph, inputs)


@needs_torchao
def test_a_pipeline_on_eight_bits(pipe: Any, calls: Any) -> None:
    plain, names = draw(pipe), set(pipe.unet.state_dict())
    cost = count(pipe.unet, *unet_inputs())
    known = inputs_of(calls, 3)[0]
    with torch.no_grad():
        exact = pipe.unet(*known).sample
    with executed(pipe, "simulated", batch=3, calls=calls):
        out = draw(pipe)
        sample = unet_inputs()
        first = pipe.unet(*sample).sample
        seen = pipe.unet(*known).sample
        counted = count(pipe.unet, *sample)
        assert "runs a graph of its own" in str(bound_by(pipe.unet))
        assert torch.equal(pipe.unet(*sample, return_dict=False)[0], first)
        with pytest.raises(ValueError, match="alone, not class_labels"):
            pipe.unet(*sample, class_labels=torch.zeros(2))
    assert 22 < decibels(seen, exact) < 60
    assert not torch.equal(out, plain)
    assert counted.bops == 64 * cost.macs_conv_linear + 1024 * cost.total.attention
    assert counted.stored_bytes < 0.4 * cost.stored_bytes
    assert torch.equal(draw(pipe), plain)
    assert set(pipe.unet.state_dict()) == names
    assert count(pipe.unet, *unet_inputs()).bops == cost.bops


@needs_torchao
def test_entered_again_it_makes_nothing_anew(text_pipe: Any, calls: Any) -> None:
    settings = {"prompts": ["a fox"], "steps": 2}

    def graph(**changes: Any) -> Any:
        with executed(text_pipe, "simulated", calibration=settings | changes) as executor:
            return executor

    first = graph()
    assert graph() is first
    assert graph(seed=1) is not first
    assert graph() is first  # beside the other
    again = graph(seed=1)
    own = text_pipe.unet.attn_processors
    text_pipe.unet.set_attn_processor(AttnProcessor())
    assert graph(seed=1) is not again
    text_pipe.unet.set_attn_processor(own)
    assert graph(seed=1) is again
    with torch.no_grad():
        text_pipe.unet.conv_in.weight.mul_(2)
    assert graph(seed=1) is not again
    with executed(text_pipe, "simulated", calls=calls) as one:
        pass
    with executed(text_pipe, "simulated", calls=calls) as other:
        assert other is not one


@needs_torchao
def test_torchao_configuration(pipe: Any) -> None:
    plain, weight = draw(pipe), pipe.unet.mid_block.attentions[0].proj_in.weight
    linear = pipe.unet.time_embedding.linear_1
    expected = linear.weight.detach().clone()
    x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0))
    before, cost = linear(x), count(pipe.unet, *unet_inputs())
    with torchao_quantized(pipe, include=["unet.time_embedding.*"]) as paths:
        assert paths == ["unet.time_embedding.linear_1", "unet.time_embedding.linear_2"]
        assert type(linear.weight.data) is not torch.Tensor or linear.weight.dtype == torch.int8
        step = expected.abs().amax(1) / 127
        error = (linear(x) - before).abs()
        assert error.max() > 0
        counted = count(pipe.unet, *unet_inputs())
        layer = counted.modules["time_embedding.linear_1"]
        assert layer.bops == layer.macs_conv_linear * 8 * 32
        both = [linear, pipe.unet.time_embedding.linear_2]
        # A byte a weight; of each row a float32 scale and a zero point of one byte.
        saved = sum(3 * each.weight.numel() - 5 * each.out_features for each in both)
        assert counted.stored_bytes == cost.stored_bytes - saved
        assert (error <= 0.51 * step * x.abs().sum(1, keepdim=True)).all()
    assert torch.equal(linear.weight, expected)
    assert pipe.unet.mid_block.attentions[0].proj_in.weight is weight
    assert torch.equal(draw(pipe), plain)
    for settings, text in (
        ({"config": "Int3"}, "config=Int3: allowed are "),
        ({"settings": {"bit": 1}}, "settings=.*Int8WeightOnlyConfig"),
        ({"include": ["unet.conv_in"]}, "fits no linear layer"),
    ):
        with pytest.raises(ValueError, match=text), torchao_quantized(pipe, **settings):
            pass


@needs_torchao
def test_refusals(pipe: Any, calls: Any) -> None:
    for settings, text in (
        ({"engine": "tensorrt"}, "engine=tensorrt: allowed are inductor, simulated"),
        ({"batch": 0}, "batch=0: must be"),
        ({"precision": "int4"}, "precision=int4: allowed are float32, bfloat16"),
        ({"calibration": {"step": 1}}, "calibration.step: unknown"),
        ({"calls": []}, "holds no call of the UNet"),
    ):
        with pytest.raises(ValueError, match=text), executed(pipe, **settings):
            pass
    quantize_(pipe, "w8a8", calls=calls)
    with pytest.raises(ValueError, match="is quantized already"), executed(pipe, calls=calls):
        pass


def test_runs_a_graph_of_its_own() -> None:
    methods = {"int8": executed, "reuse": edgegen.clockwork}
    with (
        pytest.raises(ValueError, match="int8 and reuse cannot be combined: int8 runs a graph"),
        edgegen.apply(None, methods),
    ):
        pass


def test_without_torchao(pipe: Any, calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization", "torchao.quantization.pt2e"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"needs torchao .*edgegen\[engines\]"):
        int8_graph(pipe.unet, inputs_of(calls, 2))
    with pytest.raises(ValueError, match="needs torchao"), torchao_quantized(pipe):
        pass
