"""Compiled and exported: no breaks, one graph for all timesteps, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantization_models import draw, make_pipe, unet_inputs

from edgegen.quantization import quantize_, quantized
from edgegen.reuse import clockwork

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


def test_export(pipe: Any, calls: Any) -> None:
    inputs = unet_inputs()
    quantize_(pipe, "w4a8", activations={"granularity": "token"}, attention=8, calls=calls)
    with torch.no_grad():
        expected = pipe.unet(*inputs, return_dict=False)[0]
        program = torch.export.export(pipe.unet, inputs, {"return_dict": False}, strict=False)
        out = program.module()(*inputs, return_dict=False)[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("round" in name for name in names)


def test_export_of_both_graphs(pipe: Any, calls: Any) -> None:
    """A full pass and a reuse pass of a clocked UNet, each a program of its own."""
    inputs = unet_inputs()
    programs, outs = [], []
    with (
        torch.no_grad(),
        quantized(pipe, "w8a8", calls=calls, time_groups=2) as report,
        clockwork(pipe.unet, 2) as method,
    ):
        assert report.steps is not None
        times = [900.0, 800.0]
        report.steps.reset(times)
        for export in (False, True):
            method.steps.reset(times)
            for _ in times:
                if export:
                    made = torch.export.export(
                        pipe.unet, inputs, {"return_dict": False}, strict=False
                    )
                    programs.append(made)
                    method.context.slot.open = True
                outs.append(pipe.unet(*inputs, return_dict=False)[0])
                method.steps.tick()
    assert torch.equal(outs[0], outs[2])
    sizes = [
        sum("conv2d" in str(node.target) for node in program.graph.nodes) for program in programs
    ]
    assert sizes[1] < sizes[0] / 1.5
