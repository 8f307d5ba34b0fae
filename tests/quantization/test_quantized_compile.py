"""Compiled and exported: no breaks, one graph for all timesteps, the same numbers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from quantization_models import draw, make_pipe, unet_inputs

from edgegen.quantization import quantize_, quantized
from edgegen.reuse import clockwork, export_passes, faster_diffusion

SPEC: dict[str, Any] = {"spec": "w4a8", "attention": 8, "time_groups": 2}


@pytest.fixture
def pipe() -> Any:
    """With attention in the middle alone: tracing takes its time by the layer."""
    return make_pipe(down_block_types=("DownBlock2D",) * 2)


def test_compiled_and_clocked(pipe: Any, calls: Any, graphs: Any) -> None:
    plain = draw(pipe, 4)
    with quantized(pipe, calls=calls, **SPEC):
        every = draw(pipe, 4)
        with clockwork(pipe, 2):
            reused = draw(pipe, 4)
    unet = pipe.unet
    pipe.unet = torch.compile(unet, backend=graphs, fullgraph=True)
    with quantized(pipe, calls=calls, **SPEC):
        assert torch.equal(draw(pipe, 4), every)
        assert graphs.count == 1  # for both groups of timesteps
        with clockwork(pipe, 2):
            assert torch.equal(draw(pipe, 4), reused)
        assert graphs.count == 3
    assert torch.equal(draw(pipe, 4), plain)


@pytest.mark.parametrize(
    ("spec", "changes", "added"),
    [
        ("w4a8", {"activations": {"granularity": "token"}, "attention": 8}, "round"),
        ("vq2d", {"weights": {"codebook_bits": 1.0}}, "index"),
    ],
    ids=["w4a8", "vq2d"],
)
def test_export(spec: str, changes: dict[str, Any], added: str, pipe: Any, calls: Any) -> None:
    inputs = unet_inputs()
    before = torch.export.export(pipe.unet, inputs, {"return_dict": False}, strict=False)
    quantize_(pipe, spec, calls=calls, **changes)
    with torch.no_grad():
        expected = pipe.unet(*inputs, return_dict=False)[0]
        program = torch.export.export(pipe.unet, inputs, {"return_dict": False}, strict=False)
        out = program.module()(*inputs, return_dict=False)[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    plain, names = ({str(node.target) for node in each.graph.nodes} for each in (before, program))
    assert any(added in name for name in names - plain if name.startswith("aten."))


@pytest.mark.parametrize(
    "method",
    [
        partial(clockwork, clock=2),
        partial(clockwork, clock=2, predictor="resnet"),
        partial(faster_diffusion, clock=2),
    ],
    ids=["identity", "adaptor", "encoder"],
)
@pytest.mark.parametrize("quantize", [False, True], ids=["plain", "w8a8"])
def test_export_of_both_graphs(method: Any, quantize: bool, pipe: Any, calls: Any) -> None:
    """Other samples, timesteps and texts than those exported with, against the run itself."""
    torch.manual_seed(0)
    with torch.no_grad(), ExitStack() as stack:
        if quantize:  # static scales, skip connections with scales of their own
            report = stack.enter_context(quantized(pipe, "w8a8", calls=calls))
            assert any("split" in row.inputs for row in report.rows)
        reuse = stack.enter_context(method(pipe.unet))
        if isinstance(reuse.predictor, torch.nn.Module):
            for parameter in reuse.predictor.parameters():
                torch.nn.init.normal_(parameter, std=0.2)  # untrained, it would be the identity
        programs = export_passes(reuse, *inputs_at(0, 900.0))
        runs = [inputs_at(1, 700.0), inputs_at(2, 500.0)]
        reuse.steps.reset([700.0, 500.0])
        expected = []
        for inputs in runs:
            expected.append(pipe.unet(*inputs, return_dict=False)[0])
            reuse.steps.tick()
    first, features = programs.full.module()(*runs[0])
    second, _ = programs.reuse.module()(*runs[1], features)
    torch.testing.assert_close(first, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, expected[1], rtol=1e-4, atol=1e-5)
    other = tuple(tuple(2 * value for value in site) for site in features)
    assert not torch.allclose(programs.reuse.module()(*runs[1], other)[0], second, atol=1e-3)
    sizes = [
        sum("conv2d" in str(node.target) for node in program.graph.nodes) for program in programs
    ]
    assert sizes[1] < sizes[0] / 1.5


def test_within_a_run_nothing_is_exported(pipe: Any) -> None:
    with clockwork(pipe.unet, 2) as method:
        method.steps.reset([900.0, 800.0])
        with pytest.raises(RuntimeError, match="not within a run"):
            export_passes(method, *inputs_at(0, 900.0))


def inputs_at(seed: int, time: float) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    sample, _, text = unet_inputs()
    drawn = [torch.randn(each.shape, generator=generator) for each in (sample, text)]
    return drawn[0], torch.tensor(time), drawn[1]
