"""The packages that are compared with: at work, counted, and gone without a trace."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from reuse_models import draw

from edgegen.cost import CostTracker
from edgegen.reuse import deepcache
from edgegen.reuse.gating import gating
from edgegen.reuse.peers import deepcache_package, tgate_package
from edgegen.sampling.steps import bound_by


def cost(pipe: Any) -> list[int]:
    with CostTracker(pipe) as tracker:
        draw(pipe, steps=5)
    return [step.macs_all for step in tracker.steps()]


def test_deepcache(pipe: Any) -> None:
    """Our own DeepCache gives the same pictures, and the same count of its work."""
    pytest.importorskip("DeepCache")
    plain = draw(pipe)
    before = set(pipe.unet.state_dict())
    with deepcache(pipe, 2, 1):
        expected, work = draw(pipe, steps=5), cost(pipe)
    with deepcache_package(pipe, 2, 1):
        assert torch.equal(draw(pipe, steps=5), expected)
        assert torch.equal(draw(pipe, steps=5, batch=2)[:1], draw(pipe, steps=5, batch=2)[:1])
        assert cost(pipe) == work
        assert "deepcache_package: counts" in str(bound_by(pipe.unet))  # chunks would mix
    assert bound_by(pipe.unet) is None
    assert work[1] < work[0]
    assert torch.equal(draw(pipe), plain)
    assert set(pipe.unet.state_dict()) == before
    assert all("forward" not in module.__dict__ for module in pipe.unet.modules())


def test_tgate(pipe: Any) -> None:
    pytest.importorskip("tgate")
    plain, kind = draw(pipe), type(pipe)
    with tgate_package(pipe, 2):
        found, work = draw(pipe, steps=5), cost(pipe)
        assert torch.equal(draw(pipe, steps=5), found)
        assert isinstance(pipe, kind)
        assert "tgate_package: counts" in str(bound_by(pipe.unet))
    with gating(pipe, 2):
        assert cost(pipe) == work
    with tgate_package(pipe, 4, sp_interval=3, warm_up=0):
        assert sum(cost(pipe)[:4]) < 4 * work[0]  # self-attention is kept as well
    assert type(pipe) is kind
    assert torch.equal(draw(pipe), plain)
    for module in pipe.unet.modules():
        assert not {"forward", "cache"} & set(module.__dict__)


@pytest.mark.parametrize(
    ("method", "module"), [(deepcache_package, "DeepCache"), (tgate_package, "tgate.SD")]
)
def test_a_missing_package_is_one_line(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, method: Any, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'edgegen\[peers\]'"), method(pipe):
        pass
    assert all("forward" not in module.__dict__ for module in pipe.unet.modules())
