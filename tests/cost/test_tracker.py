from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import edgegen
from edgegen.cost import CostTracker, cost_mode, count, tracker


def draw(pipe: StableDiffusionPipeline, steps: int = 3, prompts: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": steps, "output_type": "pt", "generator": generator}
    return pipe(["fox"] * prompts, **settings).images


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The modules whose operators are counted one by one, in order."""
    found: list[nn.Module] = []

    class Spy(tracker.Counter):
        def __init__(self, root: nn.Module, prefix: str = "") -> None:
            found.append(root)
            super().__init__(root, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "Counter", Spy)
        yield found


def test_public_name() -> None:
    assert edgegen.CostTracker is CostTracker


def test_whole_run_agrees_with_torch(pipe: StableDiffusionPipeline) -> None:
    """torch's own counter, told of the CPU's attention kernel, over every call of the run."""

    def on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: on_cpu}) as torchs:
        draw(pipe)
    with CostTracker(pipe) as cost:
        draw(pipe)
    assert 2 * cost.total_macs == torchs.get_total_flops()
    assert not cost.uncounted


def test_each_signature_is_counted_once(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = [pipe.vae.post_quant_conv, pipe.vae.decoder]
    with counted(monkeypatch) as found, CostTracker(pipe) as cost:
        draw(pipe, steps=5)
        assert found == [pipe.text_encoder, pipe.unet, *decoder]
        draw(pipe, steps=2)
        assert len(found) == 4
        draw(pipe, steps=2, prompts=2)
        assert found[4:] == [pipe.text_encoder, pipe.unet, *decoder]
    parts = cost.summary()
    assert {name: part.calls for name, part in parts.items()} == {
        "text_encoder": 6,
        "unet": 9,
        "vae.decoder": 3,
    }
    one = count(pipe.unet, torch.zeros(2, 4, 32, 32), 1, torch.zeros(2, 16, 48))
    assert parts["unet"].total.macs_all == (7 + 2 * 2) * one.macs_all
    assert [step.macs_all // one.macs_all for step in cost.steps()] == [1] * 7 + [2] * 2
    assert parts["unet"].total.modules["conv_in"].conv == 11 * one.modules["conv_in"].conv


def test_a_plain_network_is_counted_once_for_all_trackers(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CostTracker(pipe) as first:
        draw(pipe)
    with counted(monkeypatch) as found, CostTracker(pipe) as second:
        draw(pipe, steps=5)
    assert pipe.unet not in found
    assert pipe.vae.decoder not in found
    assert second.steps() == [first.steps()[0]] * 5
    assert second.summary()["vae.decoder"] == first.summary()["vae.decoder"]


def changes() -> dict[str, Any]:
    """What makes a UNet do other work, by name; each gives how to undo it."""

    def hook(unet: Any) -> Any:
        return unet.mid_block.register_forward_hook(lambda *_: None).remove

    def forward(unet: Any) -> Any:
        unet.mid_block.forward = lambda x, *_, **__: x
        return lambda: unet.mid_block.__delattr__("forward")

    def swap(unet: Any) -> Any:
        old, unet.conv_out = unet.conv_out, nn.Conv2d(32, 4, 1)
        return lambda: setattr(unet, "conv_out", old)

    def processor(unet: Any) -> Any:
        old = dict(unet.attn_processors)
        unet.set_attn_processor(AttnProcessor())
        return lambda: unet.set_attn_processor(old)

    def setting(unet: Any) -> Any:
        unet.up_blocks[1].resnets[0].output_scale_factor = 2.0
        return lambda: setattr(unet.up_blocks[1].resnets[0], "output_scale_factor", 1.0)

    return {made.__name__: made for made in (hook, forward, swap, processor, setting)}


@pytest.mark.parametrize("name", changes())
def test_a_changed_network_is_counted_anew(
    unet: UNet2DConditionModel, unet_inputs: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with CostTracker(unet) as before:
        unet(*unet_inputs)
    undo = changes()[name](unet)
    with counted(monkeypatch) as found, CostTracker(unet) as during:
        unet(*unet_inputs)
    assert found == [unet]
    assert during.total_macs == count(unet, *unet_inputs).macs_all
    undo()
    with CostTracker(unet) as after:
        unet(*unet_inputs)
    assert after.steps() == before.steps()


def test_steps_of_several_calls(unet: UNet2DConditionModel, unet_inputs: Any) -> None:
    now = 0
    with CostTracker(unet, step=lambda: now) as cost:
        unet(*unet_inputs)
        unet(*unet_inputs)
        now = 1
        unet(*unet_inputs)
    one = count(unet, *unet_inputs).macs_all
    assert [step.macs_all for step in cost.steps()] == [2 * one, one]


def test_nothing_changes_and_nothing_stays(pipe: StableDiffusionPipeline) -> None:
    nets = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = draw(pipe)
    keys = [list(net.state_dict()) for net in nets]
    attributes = [{name: set(vars(m)) for name, m in net.named_modules()} for net in nets]
    with CostTracker(pipe):
        during = draw(pipe)
        assert [list(net.state_dict()) for net in nets] == keys
    assert torch.equal(before, during)
    assert torch.equal(before, draw(pipe))
    for net, names in zip(nets, attributes, strict=True):
        assert {name: set(vars(m)) for name, m in net.named_modules()} == names
        for module in net.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._forward_hooks_always_called
            assert not module._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(
    unet: UNet2DConditionModel, unet_inputs: Any, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error("stop")

    cost = CostTracker(unet)
    with cost:
        unet(*unet_inputs)
        handle = unet.mid_block.register_forward_pre_hook(fail)
        with pytest.raises(error):
            unet(torch.zeros(4, 4, 32, 32), 1, torch.zeros(4, 77, 48))
    handle.remove()
    assert not unet._forward_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert len(cost.calls) == 1
    assert cost.total_macs == count(unet, *unet_inputs).macs_all


def test_a_failed_call_does_not_stand_for_the_next(
    unet: UNet2DConditionModel, unet_inputs: Any
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    with CostTracker(unet) as cost:
        handle = unet.up_blocks[0].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            unet(*unet_inputs)
        handle.remove()
        unet(*unet_inputs)
    assert cost.total_macs == count(unet, *unet_inputs).macs_all


def test_modes_are_counted_apart(
    unet: UNet2DConditionModel, unet_inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a method does that skips the middle block on every second step."""
    full = True
    original = unet.mid_block.forward
    unet.mid_block.forward = lambda x, *args, **kwargs: original(x, *args, **kwargs) if full else x
    with counted(monkeypatch) as found, CostTracker(unet) as cost:
        with cost_mode(unet, lambda: full):
            for step in range(6):
                full = step % 2 == 0
                unet(*unet_inputs)
        assert len(found) == 2
        unet(*unet_inputs)  # the mode has ended: another state of affairs, counted anew
        assert len(found) == 3
    del unet.mid_block.forward
    one = count(unet, *unet_inputs)
    skipped = one.macs_all - one.under("mid_block").macs_all
    assert [step.macs_all for step in cost.steps()] == [one.macs_all, skipped] * 3 + [skipped]
    assert cost.metrics()["cost/gmacs_all"] == one.macs_all / 2 / 1e9
    assert "_cost_modes" not in vars(unet)


def test_metrics(pipe: StableDiffusionPipeline) -> None:
    with CostTracker(pipe) as cost:
        draw(pipe, steps=3, prompts=2)
    one = count(pipe.unet, torch.zeros(1, 4, 32, 32), 1, torch.zeros(1, 16, 48))
    metrics = cost.metrics(images=2)
    assert metrics["cost/params"] == one.params
    assert metrics["cost/gmacs_all"] == one.macs_all / 1e9
    assert metrics["cost/gmacs_conv_linear"] == one.macs_conv_linear / 1e9
    assert metrics["cost/tflops_all"] == pytest.approx(2 * 3 * 2 * one.macs_all / 1e12)
    assert metrics["cost/tflops_conv_linear"] == pytest.approx(12 * one.macs_conv_linear / 1e12)
    assert metrics["cost/tbops"] == pytest.approx(6 * one.bops / 1e12)
    assert metrics["cost/unet_calls"] == 3
    parts = sum(metrics[f"cost/{p}_tflops_all"] for p in ("text_encoder", "unet", "vae_decoder"))
    assert metrics["cost/total_tflops_all"] == pytest.approx(parts)
    assert metrics["cost/uncounted_ops"] == 0
    decoder = sum(
        p.numel() for m in (pipe.vae.decoder, pipe.vae.post_quant_conv) for p in m.parameters()
    )
    assert metrics["cost/vae_decoder_params"] == decoder


def test_table_names_what_it_could_not_count(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda _m, _a, out: torch.fft.fft2(out).real)
    with CostTracker(pipe) as cost:
        draw(pipe, steps=4)
    assert cost.uncounted == {"aten::_fft_c2c": 4}
    assert cost.metrics()["cost/uncounted_ops"] == 4
    lines = cost.table().splitlines()
    assert lines[-1] == "Not counted, for want of a formula: aten::_fft_c2c (4×)"
    assert [line.split()[0] for line in lines[2:5]] == ["text_encoder", "unet", "vae.decoder"]


def test_autoencoders(pipe: StableDiffusionPipeline) -> None:
    pictures = torch.zeros(1, 3, 64, 64)
    with CostTracker(pipe) as cost:
        pipe.vae.decode(pipe.vae.encode(pictures).latent_dist.mean)
    assert list(cost.summary()) == ["vae.encoder", "vae.decoder"]
    both = count(pipe.vae, pictures)  # its forward encodes and decodes
    assert cost.total_macs == both.macs_all
    halves = cost.summary()
    assert sum(part.total.params for part in halves.values()) == both.params
    assert [part.calls for part in halves.values()] == [1, 1]
    names = {name for part in halves.values() for name in part.total.modules}
    assert names == both.modules.keys() - {""}  # itself, it only cuts mean from variance

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with CostTracker({"vae": tiny}) as cost:
        tiny.decode(tiny.encode(pictures).latents)
    assert cost.total_macs == count(tiny, pictures).macs_all


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks(unet: UNet2DConditionModel, unet_inputs: Any, in_place: bool) -> None:
    expected = count(unet, *unet_inputs).macs_all
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    if in_place:
        unet.compile(backend=backend)
    compiled: Any = unet if in_place else torch.compile(unet, backend=backend)
    with torch.no_grad():
        before = compiled(*unet_inputs).sample
        made = graphs
        assert made >= 1
        with CostTracker({"unet": compiled}) as cost:
            for _ in range(3):
                after = compiled(*unet_inputs).sample
        compiled(*unet_inputs)
    assert cost.total_macs == 3 * expected
    assert graphs == made  # neither counting nor what follows compiles anything again
    torch.testing.assert_close(after, before)
    assert not compiled._forward_hooks
    torch._dynamo.reset()


def test_autocast_is_another_signature(unet: UNet2DConditionModel, unet_inputs: Any) -> None:
    with CostTracker(unet) as cost, torch.no_grad():
        unet(*unet_inputs)
        with torch.autocast("cpu", torch.bfloat16):
            unet(*unet_inputs)
    wide, narrow = cost.steps()
    assert wide.macs_all == narrow.macs_all
    assert narrow.bops < 0.3 * wide.bops


def test_what_cannot_be_tracked_is_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="cannot count an object of type int"):
        CostTracker(3)
    with pytest.raises(ValueError, match="holds no network"):
        CostTracker({"tokenizer": None})
    with pytest.raises(ValueError, match="unet holds block: give one of them"):
        CostTracker({"unet": unet, "block": unet.mid_block})
    cost = CostTracker({"unet": unet, "same": unet})
    with cost, pytest.raises(RuntimeError, match="entered already"), cost:
        pass
