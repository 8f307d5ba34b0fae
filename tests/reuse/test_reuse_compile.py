"""Compiled: one graph for full passes, one for reuse, no breaks, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from reuse_models import BETAS, TOKENS, WIDTH, draw, make_pipe, make_unet

from edgegen.reuse import Stage, clockwork, deepcache, make_adaptor


@pytest.fixture
def small() -> Any:
    """One level left out of two, attention in the middle alone, so that tracing is quick."""
    pipe = make_pipe("sd1", DDIMScheduler(**BETAS, clip_sample=False))
    pipe.unet = make_unet((0, 0), layers_per_block=1)
    return pipe


def test_compiled_run_before_attaching(small: Any, graphs: Any) -> None:
    unet, plain = small.unet, draw(small)
    with clockwork(small, 2):
        expected = draw(small)
    small.unet = torch.compile(unet, backend=graphs, fullgraph=True)
    assert torch.equal(draw(small), plain)
    assert graphs.count == 1
    with clockwork(small, 2):
        assert torch.equal(draw(small), expected)
    assert graphs.count == 3  # two more
    assert torch.equal(draw(small), plain)
    with clockwork(small, 2):
        assert torch.equal(draw(small), expected)
    assert graphs.count == 3


@pytest.mark.parametrize("name", ["adaptor", "branch"])
def test_compiled_in_place_while_attached(small: Any, graphs: Any, name: str) -> None:
    adaptor = make_adaptor(small.unet, Stage(), width=8).eval()
    torch.nn.init.normal_(adaptor.conv_out.weight, std=0.1)
    make: dict[str, Any] = {
        "adaptor": lambda: clockwork(small, 3, adaptor),
        "branch": lambda: deepcache(small, 2, branch=1),
    }
    with make[name]():
        expected = draw(small, steps=6)
    with make[name]():
        small.unet.compile(backend=graphs, fullgraph=True)
        for _ in range(2):
            assert torch.equal(draw(small, steps=6), expected)
    assert graphs.count == 2


def test_streams_in_compiled_graphs(small: Any, graphs: Any) -> None:
    """Swapping the slot needs no graph of its own, and mixes nothing up."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 4, 1, 4, 8, 8, generator=generator)  # (stream, step, …)
    text = torch.randn(1, TOKENS, WIDTH, generator=generator)
    unet = small.unet

    @torch.no_grad()
    def run(unet: Any, streams: list[int]) -> list[torch.Tensor]:
        outs = []
        with clockwork(unet, 2, "linear") as method:
            method.steps.reset([800.0, 600.0, 400.0, 200.0])
            for step in range(4):
                for stream in streams:
                    with method.steps.stream(stream):
                        outs.append(unet(samples[stream, step], torch.tensor(500), text).sample)
                method.steps.tick()
        return outs

    apart = [run(unet, [0]), run(unet, [1])]
    together = run(torch.compile(unet, backend=graphs, fullgraph=True), [0, 1])
    assert graphs.count == 2
    for step in range(4):
        for stream in (0, 1):
            assert torch.equal(together[2 * step + stream], apart[stream][step])
