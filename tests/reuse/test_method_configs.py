"""Every file of the group `method` makes a method, and what is typed reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from reuse_models import draw

from edgegen.reuse import Branch, Encoder, Stage, clockwork, faster_diffusion, reuse

CONFIGS = Path(__file__).parents[2] / "configs" / "method"
NAMES = ("clockwork", "deepcache", "faster_diffusion")


def compose(*overrides: str) -> Any:
    with hydra.initialize_config_dir(str(CONFIGS.parent), version_base="1.3"):
        return hydra.compose(overrides=list(overrides)).method


@pytest.mark.parametrize("name", NAMES)
def test_makes_a_method(pipe: Any, name: str) -> None:
    config = compose(f"+method=[{name}]")[name]
    with hydra.utils.instantiate(config)(pipe) as method:
        draw(pipe)
        assert method.passes[0]


def test_defaults_are_the_functions(pipe: Any) -> None:
    same = {
        "clockwork": reuse(pipe, Stage(1), 2),
        "deepcache": reuse(pipe, Branch(0), 3),
        "faster_diffusion": reuse(pipe, Encoder(), {"full": [1, 2, 3, 4, 6, 11, 16, 26, 36]}),
    }
    for name, method in same.items():
        with method:
            expected = draw(pipe, steps=8)
        with hydra.utils.instantiate(compose(f"+method=[{name}]")[name])(pipe):
            assert torch.equal(draw(pipe, steps=8), expected)


@pytest.mark.parametrize(
    ("typed", "clock"),
    [("3", 3), ("{early:2}", {"early": 2}), ("{reuse:[3,4]}", {"reuse": [3, 4]})],
)
def test_overrides(pipe: Any, typed: str, clock: Any) -> None:
    config = compose(
        "+method=[clockwork,deepcache,faster_diffusion]",
        f"method.clockwork.clock={typed}",
        f"method.faster_diffusion.clock={typed}",
        f"method.deepcache.clock={typed}",
        "method.deepcache.branch=1",
        "method.clockwork.predictor=linear",
        "method.clockwork.stage=2",
    )
    assert set(config) == {"clockwork", "deepcache", "faster_diffusion"}
    assert OmegaConf.to_container(config.clockwork)["_partial_"] is True
    with clockwork(pipe, clock, "linear", stage=2):
        expected = draw(pipe)
    with hydra.utils.instantiate(config.clockwork)(pipe):
        assert torch.equal(draw(pipe), expected)
    with faster_diffusion(pipe, clock):
        expected = draw(pipe)
    with hydra.utils.instantiate(config.faster_diffusion)(pipe):
        assert torch.equal(draw(pipe), expected)
    with reuse(pipe, Branch(1), clock):
        expected = draw(pipe)
    with hydra.utils.instantiate(config.deepcache)(pipe):
        assert torch.equal(draw(pipe), expected)
