"""Sensitivities against layers quantized by hand, and bits against all choices there are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from quantization_models import draw, make_pipe

from edgegen.cost import count
from edgegen.quantization import parse_spec, quantized
from edgegen.quantization.allocation import allocate, mixed_bits, mixed_spec, totals
from edgegen.quantization.sensitivity import Sensitivity, measure_sensitivity

INCLUDE = ("unet.mid_block.resnets.0.*", "unet.conv_in", "unet.time_embedding.linear_2")


@pytest.fixture(scope="module")
def found(calls: Any) -> Sensitivity:
    spec = parse_spec("w4a8", include=list(INCLUDE))
    return measure_sensitivity(make_pipe(), spec, calls, [3, 8], [4, 8])


def test_is_the_error_of_the_output(found: Sensitivity, calls: Any) -> None:
    """One layer quantized by `quantized` itself, timestep by timestep."""
    pipe = make_pipe()
    assert found.times == sorted({call.time for call in calls}, reverse=True)
    paths = [layer.path for layer in found.layers]
    assert len(paths) == 5
    assert "unet.mid_block.resnets.0.time_emb_proj" in paths
    for layer in found.layers[::2]:
        for kind, weights, activations in (
            ("weights", 3, None),
            ("activations", None, 4),
            ("both", 8, 8),
        ):
            settings = {
                "weights": {"bits": weights},
                "activations": {"bits": activations},
                "include": [layer.path],
                "first_last": "same",
            }
            own = []
            for time in found.times:
                error = size = 0.0
                for call in (each for each in calls if each.time == time):
                    with torch.no_grad():
                        plain = pipe.unet(*call.args, **{**call.kwargs, "return_dict": False})[0]
                        with quantized(pipe, "w4a8", calls=calls, **settings):
                            out = pipe.unet(*call.args, **{**call.kwargs, "return_dict": False})[0]
                    error += float((out - plain).square().sum())
                    size += float(plain.square().sum())
                own.append(error / size)
            np.testing.assert_allclose(layer.errors[kind][weights or activations], own, rtol=1e-4)


def test_groups_of_timesteps_change_nothing(found: Sensitivity, calls: Any) -> None:
    """Scales are for all timesteps."""
    spec = parse_spec("w4a8", include=list(INCLUDE), time_groups=2)
    again = measure_sensitivity(make_pipe(), spec, calls, [3], [4])
    assert [layer.errors["activations"][4] for layer in again.layers] == [
        layer.errors["activations"][4] for layer in found.layers
    ]


def test_fewer_bits_err_more(found: Sensitivity) -> None:
    for layer in found.layers:
        assert layer.mean("weights", 3) > 10 * layer.mean("weights", 8) > 0
        assert layer.mean("activations", 4) > 10 * layer.mean("activations", 8) > 0
        assert set(layer.errors) == {"weights", "activations", "both"}
        assert list(layer.errors["both"]) == [8]
    assert Sensitivity.read(json.loads(json.dumps(found.plain()))) == found


def test_nothing_is_left_behind(calls: Any) -> None:
    pipe = make_pipe()
    expected, names = draw(pipe), set(pipe.unet.state_dict())
    measure_sensitivity(pipe, parse_spec("w8a8", include=["unet.conv_in"]), calls[:1], [4])
    assert torch.equal(draw(pipe), expected)
    assert set(pipe.unet.state_dict()) == names
    with pytest.raises(ValueError, match="no calls of the UNet"):
        measure_sensitivity(pipe, parse_spec("w8a8"), [], [4])
    with pytest.raises(ValueError, match="no bits to try"):
        measure_sensitivity(pipe, parse_spec("w8a8"), calls, [])


@pytest.mark.parametrize("seed", range(6))
def test_integer_program_against_all_choices(seed: int) -> None:
    """Six layers of two to four options, one or two budgets: 4096 choices at most."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(2, 5, 6)
    errors = [sorted(10.0 ** rng.uniform(-6, 0, width), reverse=True) for width in widths]
    size = [sorted(rng.uniform(1, 9, width)) for width in widths]
    bops = [sorted(rng.uniform(1, 9, width)) for width in widths]
    costs = {"size_kb": size, "gbops": bops}
    low = {name: sum(map(min, table)) for name, table in costs.items()}
    high = {name: sum(map(max, table)) for name, table in costs.items()}
    budgets = {name: 0.6 * low[name] + 0.4 * high[name] for name in list(costs)[: 1 + seed % 2]}

    def total(table: Any, choice: Any) -> float:
        return sum(row[option] for row, option in zip(table, choice, strict=True))

    fitting = [
        choice
        for choice in itertools.product(*map(range, widths))
        if all(total(costs[name], choice) <= budget for name, budget in budgets.items())
    ]
    least = min(total(errors, choice) for choice in fitting)
    chosen = allocate(errors, costs, budgets)
    assert all(total(costs[name], chosen) <= budget for name, budget in budgets.items())
    assert total(errors, chosen) == pytest.approx(least, rel=1e-5)


def test_refusals(found: Sensitivity) -> None:
    with pytest.raises(ValueError, match="give one budget or both"):
        mixed_bits(found)
    with pytest.raises(ValueError, match=r"size_kb=0.1: allowed are \d.* to "):
        mixed_bits(found, size_kb=0.1)
    with pytest.raises(ValueError, match=r"gbops=1e-09: allowed are"):
        mixed_bits(found, gbops=1e-9)


def test_spec_file(found: Sensitivity, calls: Any, tmp_path: Path) -> None:
    """What the program counted on is what the quantized model takes."""
    spec = parse_spec("w4a8", include=list(INCLUDE))
    extremes = [
        totals(found, {layer.path: bits for layer in found.layers}) for bits in ((3, 4), (8, 8))
    ]
    budgets = {name: (extremes[0][name] + extremes[1][name]) / 2 for name in ("size_kb", "gbops")}
    bits = mixed_bits(found, **budgets)
    assert len(set(bits.values())) > 1
    sums = totals(found, bits)
    assert all(sums[name] <= budget for name, budget in budgets.items())
    assert extremes[1]["error"] < sums["error"] < extremes[0]["error"]
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(mixed_spec(spec, bits).plain()))
    pipe = make_pipe()
    call = calls[0]
    plain = count(pipe.unet, *call.args, **call.kwargs)
    with quantized(pipe, path, calls=calls) as report:
        cost = count(pipe.unet, *call.args, **call.kwargs)
    rows = {row.path: row for row in report.rows}
    assert rows.keys() == bits.keys()
    for name, (weights, activations) in bits.items():
        assert rows[name].weights.startswith(f"{weights} bits")
        assert rows[name].inputs.startswith(f"{activations} bits")
    names = [name.removeprefix("unet.") for name in bits]
    bops = sum(cost.modules[name].bops for name in names) / len(call.args[0])
    assert bops / 1e9 == pytest.approx(sums["gbops"])
    assert cost.bops < plain.bops
    inputs = sum(8 if "split" not in row.inputs else 16 for row in report.rows)
    assert report.stored_bytes == pytest.approx(1000 * sums["size_kb"] + inputs)


def test_weights_alone(calls: Any) -> None:
    spec = parse_spec("w8a8", include=list(INCLUDE))
    found = measure_sensitivity(make_pipe(), spec, calls[:2], [2, 8])
    full = totals(found, {layer.path: (8, None) for layer in found.layers})
    bits = mixed_bits(found, size_kb=0.6 * full["size_kb"])
    assert {activations for _, activations in bits.values()} == {None}
    assert {weights for weights, _ in bits.values()} == {2, 8}
    assert full["gbops"] == pytest.approx(8 * 32 * sum(layer.macs for layer in found.layers) / 1e9)
