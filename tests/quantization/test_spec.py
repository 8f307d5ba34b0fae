"""Specs: what is typed, what it means for a layer, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from quantization_models import draw, make_pipe, relative

from edgegen.quantization import Spec, parse_spec, presets, quantized

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("vq1d", "vq2d", "vq4d", "w4a16", "w4a4", "w4a8", "w8a8")


def compose(*overrides: str) -> Any:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(overrides=list(overrides)).method


def test_presets_are_the_configs() -> None:
    assert tuple(presets()) == NAMES
    for name in NAMES:
        spec = parse_spec(name)
        bits = (spec.weights.bits, spec.activations.bits)
        if name.startswith("vq"):
            assert (*bits, spec.weights.vector) == (2, None, int(name[2]))
            assert spec.weights.rounding == "gptq"
        else:
            assert bits == tuple(map(int, name.removeprefix("w").split("a")))


@pytest.mark.parametrize("name", NAMES)
def test_configs_make_a_method(calls: Any, name: str) -> None:
    pipe = make_pipe(down_block_types=("DownBlock2D",) * 2)  # attention in the middle alone
    config = compose(f"+method=[{name}]")[name]
    plain = draw(pipe)
    with hydra.utils.instantiate(config)(pipe, calls=calls) as report:
        through_hydra = draw(pipe)
        assert len(report.rows) > 30
    with quantized(pipe, name, calls=calls):
        assert torch.equal(draw(pipe), through_hydra)
    assert 0 < relative(through_hydra, plain) < 1
    assert torch.equal(draw(pipe), plain)


def test_typed_overrides() -> None:
    config = compose(
        "+method=[w4a8]",
        "method.w4a8.activations.granularity=token",
        "method.w4a8.exclude=[*.attn1.*]",
        "+method.w4a8.layers={unet.mid_block.*:{weights:{bits:6}}}",
    ).w4a8
    settings = OmegaConf.to_container(config)
    assert isinstance(settings, dict)
    spec = parse_spec(**{str(k): v for k, v in settings.items() if not str(k).startswith("_")})
    assert spec.activations.is_dynamic
    assert not spec.covers("unet.down_blocks.1.attn1.to_q")
    assert spec.covers("unet.down_blocks.1.attn2.to_q")
    weights, activations = spec.of_layer("unet.mid_block.x")
    assert (weights.bits, weights.range, activations.bits) == (6, "mse", 8)


def test_first_and_last_layers() -> None:
    for policy, expected in (("keep", (None, None)), ("same", (4, 3)), (8, (8, 8)), (2, (4, 3))):
        spec = parse_spec(weights={"bits": 4}, activations={"bits": 3}, first_last=policy)
        weights, activations = spec.of_layer("unet.conv_in", end=True)
        assert (weights.bits, activations.bits) == expected
        assert spec.of_layer("unet.conv_in")[0].bits == 4


def test_plain_is_read_back(tmp_path: Path) -> None:
    spec = parse_spec("w4a4", layers={"*.to_q": {"weights": {"bits": 2}}}, first_last="keep")
    assert parse_spec(spec.plain()) == spec
    path = tmp_path / "own.yaml"
    OmegaConf.save(OmegaConf.create(spec.plain()), path)
    assert parse_spec(path) == spec


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"spec": "w9a9"}, "allowed are vq1d, vq2d, vq4d, w4a16, w4a4, w4a8, w8a8 or a file"),
        ({"wieghts": {}}, "wieghts: unknown, allowed are weights, activations"),
        ({"weights": {"bit": 4}}, "weights.bit: unknown, allowed are bits, symmetric"),
        ({"weights": 4}, "weights=4: must be a mapping"),
        ({"weights": {"bits": 9}}, "weights.bits=9: allowed are 2 to 8, and 16"),
        ({"weights": {"granularity": "token"}}, "allowed are tensor, channel, group"),
        ({"weights": {"group": 0}}, "weights.group=0: must be a whole number, 1 or more"),
        ({"weights": {"range": "max"}}, "weights.range=max: allowed are minmax"),
        ({"weights": {"rounding": "up"}}, "allowed are nearest, gptq"),
        ({"weights": {"vector": 3}}, "weights.vector=3: allowed are 1, 2, 4, or null"),
        ({"weights": {"vector": 4, "bits": 4}}, "weights.bits=4: with vector=4 at most 3"),
        ({"weights": {"vector": 2, "bits": 2, "codebook_bits": 0}}, "codebook_bits=0: must be"),
        ({"weights": {"vector": 2, "bits": 2, "block": 24}}, "block=24: allowed are 16, 32"),
        ({"activations": {"granularity": "channel"}}, "allowed are tensor, token"),
        ({"activations": {"granularity": "token", "dynamic": False}}, "by token are dynamic"),
        ({"activations": {"percentile": 20}}, "over 50 and at most 100"),
        ({"activations": {"p": -1}}, "activations.p=-1: must be over 0"),
        ({"activations": {"dynamic": True}, "time_groups": 2}, "dynamic scales need no groups"),
        ({"attention": 12}, "bits=12: allowed"),
        ({"parts": ["unet", "clip"]}, "allowed are unet, vae, text_encoder"),
        ({"parts": []}, "allowed are unet"),
        ({"include": 3}, "include=3: must be a list of texts"),
        ({"layers": {"*": {"weights": {"bits": 1}}}}, r"layers.\*.weights.bits=1"),
        ({"layers": {"*": {"bias": 4}}}, "bias: unknown, allowed are weights, activations"),
        ({"first_last": "none"}, "first_last=none: allowed are keep, same, or bits"),
        ({"time_embedding": "all"}, "allowed are finite, calls, keep"),
        ({"time_groups": 0}, "time_groups=0"),
        ({"calibration": {"steps": 0}}, "calibration.steps=0"),
        ({"calibration": {"prompts": []}}, "must be one text or more"),
    ],
)
def test_refusals(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        parse_spec(**settings)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        parse_spec(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    for content, text in (("a: [", "not valid YAML"), ("- 1", "expected a mapping")):
        path.write_text(content)
        with pytest.raises(ValueError, match=text):
            parse_spec(path)
    assert parse_spec(None) == Spec()
