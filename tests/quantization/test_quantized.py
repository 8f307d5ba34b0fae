"""Quantized pipelines: identity, exit, composition, what is left out, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from quantization_models import draw, make_pipe, make_text_pipe, relative, unet_inputs
from torch import nn

from edgegen.quantization import quantize_, quantized
from edgegen.quantization.modules import Quantized
from edgegen.reuse import clockwork

SIXTEEN = {
    "weights": {"bits": 16},
    "activations": {"bits": 16},
    "attention": 16,
    "first_last": "same",
}
EVERYTHING = {
    "spec": "w4a8",
    "attention": 8,
    "time_groups": 2,
    "bias_correction": True,
    "weights": {"rounding": "gptq"},
}


def layers(pipe: Any) -> dict[str, nn.Module]:
    return dict(pipe.unet.named_modules())


def test_16_bits_are_the_plain_model(pipe: Any, calls: Any) -> None:
    plain = draw(pipe, 4)
    with quantized(pipe, calls=calls, **SIXTEEN):
        error = relative(draw(pipe, 4), plain)
    assert error < 1e-3
    with quantized(pipe, calls=calls, **{**SIXTEEN, "activations": {"bits": 16, "dynamic": True}}):
        assert 0 < relative(draw(pipe), draw(make_pipe())) < 1e-3


def test_fewer_bits_err_more(pipe: Any, calls: Any) -> None:
    plain = draw(pipe, 4)
    errors = []
    for bits in (8, 6, 4):
        with quantized(
            pipe, weights={"bits": bits}, activations={"bits": bits}, first_last="same", calls=calls
        ):
            errors.append(relative(draw(pipe, 4), plain))
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.1


def test_exit_leaves_nothing_behind(pipe: Any, calls: Any) -> None:
    plain, before, state = draw(pipe), layers(pipe), copy.deepcopy(pipe.unet.state_dict())
    processors = pipe.unet.attn_processors
    dicts = {name: sorted(module.__dict__) for name, module in before.items()}
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in before.items()}
    with quantized(pipe, calls=calls, **EVERYTHING) as report:
        assert list(pipe.unet.state_dict()) == list(state)
        assert not torch.equal(draw(pipe), plain)
        assert report.steps is not None
    after = layers(pipe)
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items())
    assert pipe.unet.attn_processors == processors
    assert {name: sorted(module.__dict__) for name, module in after.items()} == dicts
    for name, module in after.items():
        assert len(module._forward_hooks) + len(module._forward_pre_hooks) == hooks[name]
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert torch.equal(draw(pipe), plain)
    assert "_edgegen_step_clock" not in pipe.scheduler.__dict__


def test_exceptions_leave_nothing_behind(pipe: Any, calls: Any) -> None:
    plain, before = draw(pipe), layers(pipe)
    with pytest.raises(KeyError), quantized(pipe, calls=calls, **EVERYTHING):
        raise KeyError
    bad = [*calls[:1], type(calls[0])((1, 2, 3))]
    with pytest.raises(AttributeError), quantized(pipe, calls=bad, **EVERYTHING):
        pass
    assert all(layers(pipe)[name] is module for name, module in before.items())
    assert torch.equal(draw(pipe), plain)


def test_moving_while_quantized(pipe: Any, calls: Any) -> None:
    with quantized(pipe, "w8a8", calls=calls):
        out = draw(pipe)
        pipe.unet.double()
        with torch.no_grad():
            assert pipe.unet(*map(_double, unet_inputs())).sample.dtype == torch.float64
        pipe.unet.float()
        assert torch.equal(draw(pipe), out)
        pipe.unet.train()
    assert pipe.unet.conv_in.training
    pipe.unet.eval()
    assert torch.equal(draw(pipe), draw(make_pipe()))


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def test_clocked(pipe: Any, calls: Any) -> None:
    """Weights first, hooks last; both leave in order."""
    plain = draw(pipe, 4)
    with quantized(pipe, "w8a8", calls=calls, time_groups=2, attention=8):
        every = draw(pipe, 4)
        with clockwork(pipe, 1):
            assert torch.equal(draw(pipe, 4), every)
        with clockwork(pipe, 2) as method:
            reused = draw(pipe, 4)
            assert method.passes == [True, False, True, False]
        assert torch.equal(draw(pipe, 4), every)
    assert not torch.equal(reused, every)
    with clockwork(pipe, 2):
        assert relative(reused, draw(pipe, 4)) < 0.1
    assert torch.equal(draw(pipe, 4), plain)


def test_for_good_is_the_simulation(pipe: Any, calls: Any) -> None:
    with quantized(pipe, calls=calls, **EVERYTHING) as simulated:
        expected = draw(pipe, 4)
    report = quantize_(pipe, calls=calls, **EVERYTHING)
    assert torch.equal(draw(pipe, 4), expected)
    assert report.rows == simulated.rows
    assert "conv_in.weight" not in pipe.unet.state_dict()
    assert pipe.unet.dtype == torch.float32
    with pytest.raises(ValueError, match=r"unet\.conv_in is quantized already"):
        quantize_(pipe, "w8a8", calls=calls)


def test_all_parts(text_pipe: Any) -> None:
    """UNet, autoencoder and text encoder, calibrated on runs of the pipeline's own."""
    spec = {"parts": ["unet", "vae", "text_encoder"], "attention": 8}
    calibration = {"prompts": ["a fox", "a pear"], "steps": 2}
    plain = draw(text_pipe, output_type="pt")
    timesteps = text_pipe.scheduler.timesteps.tolist()
    with quantized(text_pipe, "w8a8", calibration=calibration, **spec) as report:
        assert text_pipe.scheduler.timesteps.tolist() == timesteps  # of another run
        out = draw(text_pipe, output_type="pt")
    assert 0 < relative(out, plain) < 0.2
    parts = {row.path.partition(".")[0] for row in report.rows}
    assert parts == {"unet", "vae", "text_encoder"}
    products = [row.path for row in report.rows if row.kind == "Attention"]
    assert any(path.startswith("text_encoder.") for path in products)
    unreached = {p for p, why in report.skipped.items() if why == "no calibration call reached it"}
    assert unreached
    assert all(path.startswith(("vae.encoder.", "vae.quant_conv")) for path in unreached)
    with quantized(text_pipe, "w8a8", activations={"dynamic": True}, **spec) as report:
        assert 0 < relative(draw(text_pipe, output_type="pt"), plain) < 0.2
        assert not any("reached" in why for why in report.skipped.values())
    assert torch.equal(draw(text_pipe, output_type="pt"), plain)


def test_own_calibration_is_repeatable(text_pipe: Any, tmp_path: Any) -> None:
    calibration = {"prompts": ["a fox"], "steps": 2}
    outs = []
    for pipe in (text_pipe, make_text_pipe(tmp_path)):
        torch.manual_seed(len(outs))
        state = torch.get_rng_state()
        with quantized(pipe, "w8a8", calibration=calibration):
            outs.append(draw(pipe))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*outs)


def test_filters_and_report(pipe: Any, calls: Any) -> None:
    with quantized(
        pipe,
        "w4a8",
        include=["*.attentions.*", "unet.conv_in"],
        exclude=["*.attn2.*"],
        first_last="keep",
        layers={"*.to_v": {"weights": {"bits": 2}}},
        calls=calls,
    ) as report:
        twins = {n for n, m in pipe.unet.named_modules() if isinstance(m, Quantized)}
        assert pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight_bits == 2
    assert {f"unet.{name}" for name in twins} == {row.path for row in report.rows}
    assert all(".attentions." in name and ".attn2." not in name for name in twins)
    assert report.skipped["unet.conv_in"] == "kept in full precision"
    assert report.skipped["unet.conv_out"] == "not included"
    table = report.table()
    assert "mid_block.attentions.0.proj_in" in table
    assert "(not included)" in table
    assert 0 < report.stored_bytes < report.plain_bytes / 4
    assert len(report.plain()["quantized"]) == len(twins)


@pytest.mark.parametrize("policy", ["keep", "calls"])
def test_time_embedding(pipe: Any, calls: Any, policy: str) -> None:
    with quantized(pipe, "w8a8", calls=calls, time_embedding=policy) as report:
        paths = {row.path for row in report.rows}
    names = {"unet.time_embedding.linear_1", "unet.mid_block.resnets.0.time_emb_proj"}
    assert (names <= paths) == (policy == "calls")


def test_bare_unet_drives_its_own_clock(pipe: Any, calls: Any) -> None:
    sample, _, text = unet_inputs()
    with quantized(pipe.unet, "w8a8", calls=calls, time_groups=2) as report:
        assert report.steps is not None
        with pytest.raises(RuntimeError, match="within a run only"):
            pipe.unet(sample, 900, text)
        report.steps.reset([900.0, 100.0])
        outs = []
        for _ in range(2):
            with torch.no_grad():
                outs.append(pipe.unet(sample, 900, text).sample)
            report.steps.tick()
    assert not torch.equal(*outs)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"include": ["*.attn3.*"]}, r"pattern \*.attn3.\* fits no layer: paths are such as unet"),
        ({"exclude": ["conv_in"]}, "pattern conv_in fits no layer"),
        ({"layers": {"nothing": {}}}, "pattern nothing fits no layer"),
        ({"exclude": ["*"]}, "quantizes nothing"),
        ({"weights": {"bits": None}, "activations": {"bits": None}}, "quantizes nothing"),
        ({"parts": ["text_encoder"]}, "StableDiffusionPipeline has no text_encoder"),
        ({"time_groups": 50}, r"no calibration call from group \d+ of 50 groups"),
    ],
)
def test_refusals(pipe: Any, calls: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught, quantized(pipe, calls=calls, **settings):
        pass
    assert "\n" not in str(caught.value)


def test_refuses_models_it_cannot_calibrate(pipe: Any, calls: Any) -> None:
    with pytest.raises(ValueError, match="makes no calibration calls from prompts alone"):
        quantize_(pipe.unet, "w8a8")
    with quantized(pipe, "w8a8", calls=calls), pytest.raises(ValueError, match="already"):
        quantize_(pipe, "w8a8", calls=calls)
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"unet\.conv_in has weights that are not finite"):
        quantize_(pipe, "w8a8", calls=calls)
