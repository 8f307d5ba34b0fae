"""Against the peer's own code (PyPI `deepcache`), to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from reuse_models import BETAS, draw, make_pipe
from torch.utils.flop_counter import FlopCounterMode

from edgegen.reuse import clockwork, deepcache

peer = pytest.importorskip("DeepCache")

# Not Heun and PNDM, under which it takes the wrong steps itself.
SCHEDULERS = [
    "DPMSolverMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "DDIMScheduler",
]


def arithmetic(run: Callable[[], Any]) -> int:
    """FLOPs by torch's own counter; on the CPU without attention products."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peers(pipe: Any, interval: int, branch: int, **settings: Any) -> torch.Tensor:
    helper = peer.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    out = draw(pipe, **settings)
    helper.disable()
    return out


@pytest.mark.parametrize("name", SCHEDULERS)
def test_clockwork_with_the_identity(name: str) -> None:
    """Stage 1 behind the upsampler is branch 2."""
    cls = getattr(diffusers, name)
    pipe = make_pipe("sd1", cls.from_config(DDIMScheduler(**BETAS, clip_sample=False).config))
    plain = draw(pipe, steps=5)
    for interval in (2, 3):
        expected = peers(pipe, interval, 2, steps=5)
        assert not torch.equal(expected, plain)
        with clockwork(pipe, interval, before_upsampler=False):
            assert torch.equal(draw(pipe, steps=5), expected)


@pytest.mark.parametrize(
    ("layout", "branch"), [*(("sd1", branch) for branch in range(9)), ("sdxl", 1), ("sdxl", 5)]
)
def test_every_branch(layout: str, branch: int) -> None:
    """The same numbers by the same arithmetic."""
    pipe = make_pipe(layout)
    expected = peers(pipe, 3, branch)
    with deepcache(pipe, 3, branch):
        assert torch.equal(draw(pipe), expected)
        ours = arithmetic(lambda: draw(pipe, steps=2))
    assert ours == arithmetic(lambda: peers(pipe, 3, branch, steps=2))


@pytest.mark.parametrize("layout", ["ip2p", "embedded"])
def test_other_layouts(layout: str) -> None:
    pipe = make_pipe(layout)
    expected = peers(pipe, 2, 2)
    with clockwork(pipe, 2, before_upsampler=False):
        assert torch.equal(draw(pipe), expected)
