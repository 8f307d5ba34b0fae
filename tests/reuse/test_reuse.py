"""The mechanism as a whole: exact, self-resetting, and loud where it cannot be right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from reuse_models import BETAS, TOKENS, WIDTH, draw, make_pipe, make_unet, texts

from edgegen.pipelines.schedulers import scheduler_names
from edgegen.reuse import (
    Branch,
    Encoder,
    Reuse,
    Stage,
    clockwork,
    deepcache,
    faster_diffusion,
    make_adaptor,
    reuse,
)
from edgegen.sampling.steps import step_clock

Method = Callable[[Any], AbstractContextManager[Reuse]]
METHODS: dict[str, Method] = {
    "clockwork": lambda pipe: clockwork(pipe, 2),
    "stage 2": lambda pipe: clockwork(pipe, 3, "linear", stage=2, before_upsampler=False),
    "adaptor": lambda pipe: clockwork(pipe, 2, trained(pipe.unet)),
    "drift": lambda pipe: clockwork(pipe, {"drift": 2.0}),
    "deepcache 0": lambda pipe: deepcache(pipe, 2, branch=0),
    "deepcache 1": lambda pipe: deepcache(pipe, 2, branch=1),
    "faster diffusion": lambda pipe: faster_diffusion(pipe, 2),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def trained(unet: Any, seed: int = 0) -> Any:
    """An adaptor whose prediction is not the identity."""
    torch.manual_seed(seed)
    adaptor = make_adaptor(unet, Stage(), width=8).eval().requires_grad_(False)
    adaptor.conv_out.weight.normal_(std=0.1)
    return adaptor


@pytest.mark.parametrize("cut", [Stage(1), Stage(2, False), Branch(0), Branch(3), Encoder()])
def test_clock_one_is_the_plain_model(any_pipe: Any, cut: Any) -> None:
    plain = draw(any_pipe)
    with reuse(any_pipe, cut, clock=1):
        assert torch.equal(draw(any_pipe), plain)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("embedded", name) for name in METHODS),
        *((x, y) for x in ("sd1", "sd2", "sdxl", "ip2p") for y in ("adaptor", "deepcache 1")),
    ],
)
def test_exit_leaves_nothing(layout: str, name: str) -> None:
    any_pipe, method = make_pipe(layout), METHODS[name]
    unet = any_pipe.unet
    plain, keys = draw(any_pipe), list(unet.state_dict())
    attributes = {name: set(module.__dict__) for name, module in unet.named_modules()}
    with method(any_pipe):
        assert list(unet.state_dict()) == keys
        changed = draw(any_pipe)
    assert not torch.equal(changed, plain)
    assert torch.equal(draw(any_pipe), plain)
    assert list(unet.state_dict()) == keys
    assert {name: set(module.__dict__) for name, module in unet.named_modules()} == attributes


@methods
def test_exception_in_mid_run_then_a_new_run(pipe: Any, method: Method) -> None:
    plain = draw(pipe)

    def stop(_: Any, step: int, *__: Any) -> Any:
        if step == 2:
            raise KeyError
        return {}

    with method(pipe):
        expected = draw(pipe)
        with pytest.raises(KeyError):
            draw(pipe, callback_on_step_end=stop)
        assert torch.equal(draw(pipe), expected)
    with pytest.raises(KeyError), method(pipe):
        draw(pipe, callback_on_step_end=stop)
    assert torch.equal(draw(pipe), plain)


@methods
def test_sizes_and_batches_change_between_runs(method: Method) -> None:
    pipe = make_pipe("embedded")
    settings: list[dict[str, Any]] = [
        {},
        {"size": 24, "steps": 3},  # 12 latents: no multiple of the stride, 8
        {"batch": 3},
        {"guidance_scale": 1.0},
        {"size": 32},
    ]
    alone = []
    for setting in settings:
        with method(pipe):
            alone.append(draw(pipe, **setting))
    with method(pipe):
        for setting, expected in zip(settings, alone, strict=True):
            assert torch.equal(draw(pipe, **setting), expected)


@pytest.mark.parametrize("size", [(8, 8), (10, 14), (9, 7)])
@pytest.mark.parametrize(
    "cut",
    [Stage(1), Stage(1, False), Stage(2), Stage(3), *(Branch(b) for b in range(8)), Encoder()],
    ids=str,
)
def test_reuse_of_unchanged_features_changes_nothing(cut: Any, size: tuple[int, int]) -> None:
    """At the same inputs a reuse pass is the full pass to the bit, with residuals of others too."""
    unet = make_unet((1, 1, 1, 0), layers_per_block=1)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, *size, generator=generator)
    text = torch.randn(2, TOKENS, WIDTH, generator=generator)
    shapes: list[torch.Size] = []
    handles = [
        module.register_forward_hook(lambda _, __, out: shapes.append(_last(out).shape))
        for module in _skip_makers(unet)
    ]

    def evaluate(**more: Any) -> torch.Tensor:
        # UNets take what a T2I-Adapter gives out of the list.
        given = {key: list(v) if isinstance(v, list) else v for key, v in more.items()}
        return unet(sample, 300, text, **given).sample

    for control in ("", "ControlNet", "T2I-Adapter"):
        with torch.no_grad():
            evaluate()
            for handle in handles:
                handle.remove()
            more: dict[str, Any] = {}
            if control == "ControlNet":
                added = [torch.randn(shape, generator=generator) for shape in shapes]
                more["down_block_additional_residuals"] = added[:-1]
                more["mid_block_additional_residual"] = added[-1]
            elif control == "T2I-Adapter":
                sizes = [size]
                for _ in range(3):
                    sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
                more["down_intrablock_additional_residuals"] = [
                    torch.randn(2, channels, *each, generator=generator)
                    for channels, each in zip((16, 32, 32, 32), sizes, strict=True)
                ]
            plain = evaluate(**more)
            with reuse(unet, cut, clock=2) as method:
                method.steps.reset([300.0] * 4)
                for full in (True, False, True, False):
                    assert method.context.full == full
                    assert torch.equal(evaluate(**more), plain)
                    method.steps.tick()


def _last(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else getattr(out, "sample", out)


def _skip_makers(unet: Any) -> list[Any]:
    """Modules whose outputs are the skip connections, in order, and the middle."""
    found = [unet.conv_in]
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", None)
        found += list(attentions if attentions is not None else block.resnets)
        found += list(block.downsamplers or ())
    return [*found, unet.mid_block]


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_keeps_the_phase(name: str) -> None:
    """The deep part runs at every other evaluation, whatever a scheduler calls a step."""
    cls = getattr(diffusers, name)
    scheduler = cls.from_config(DDIMScheduler(**BETAS).config)
    pipe = make_pipe("embedded", scheduler)
    runs: list[str] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: runs.append("all"))
    pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: runs.append("deep"))
    with clockwork(pipe, clock=2) as method:
        for steps in (4, 5):
            runs.clear()
            draw(pipe, steps=steps)
            count = runs.count("all")
            assert runs == (["all", "deep", "all"] * count)[: len(runs)]
            assert runs.count("deep") == -(-count // 2)
            assert method.passes == [i % 2 == 0 for i in range(count)]


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_shortened_schedule_of_img2img(pipe: Any, cls: Any) -> None:
    """The named schedule fills the run that really happens."""
    scheduler = cls.from_config(pipe.scheduler.config)
    parts = {**pipe.components, "scheduler": scheduler}
    image = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    image.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    evaluations: list[None] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: evaluations.append(None))
    with clockwork(image, {"late": 2}) as method, torch.no_grad():
        image(**texts(), image=latents, strength=0.5, num_inference_steps=10, output_type="latent")
    handle.remove()
    count = len(evaluations)
    assert len(method.passes) == count
    assert sum(method.passes) == -(-count // 2)
    assert method.passes[-1]


def loop(pipe: Any, seed: int, steps: int = 5) -> Any:
    """A denoising loop of one's own, as a generator that yields after each step."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, TOKENS, WIDTH, generator=generator)
    pipe.scheduler.set_timesteps(steps)
    for time in pipe.scheduler.timesteps:
        with torch.no_grad():
            out = pipe.unet(pipe.scheduler.scale_model_input(latents, time), time, text).sample
        latents = pipe.scheduler.step(out, time, latents).prev_sample
        yield latents


@methods
def test_two_pipelines_interleaved(method: Method) -> None:
    one, two = make_pipe("sd1"), make_pipe("embedded")
    with method(one), method(two):
        alone = [list(loop(one, 1)), list(loop(two, 2))]
        together = list(zip(loop(one, 1), loop(two, 2), strict=True))
    for step, pair in enumerate(together):
        assert torch.equal(pair[0], alone[0][step])
        assert torch.equal(pair[1], alone[1][step])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "drift"])
def test_streams_share_nothing(pipe: Any, name: str) -> None:
    """Two chunks of frames in one loop come out as each does in a loop of its own."""
    pipe.scheduler = DDIMScheduler(**BETAS, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    text = torch.randn(2, TOKENS, WIDTH, generator=generator)

    @torch.no_grad()
    def denoise(chunks: list[torch.Tensor], keys: list[Any]) -> list[torch.Tensor]:
        with METHODS[name](pipe) as attached:
            pipe.scheduler.set_timesteps(6)
            for time in pipe.scheduler.timesteps:
                outs = []
                for chunk, key in zip(chunks, keys, strict=True):
                    with attached.steps.stream(key):
                        outs.append(pipe.unet(chunk, time, text).sample)
                joint = pipe.scheduler.step(torch.cat(outs), time, torch.cat(chunks))
                chunks = list(joint.prev_sample.split(2))
        return chunks

    one, two = noise[:2], noise[2:]
    together = denoise([one, two], ["a", ("b", 1)])
    (first,), (second,) = denoise([one], [None]), denoise([two], [None])
    assert torch.equal(together[0], first)
    assert torch.equal(together[1], second)


def test_a_stream_that_appears_late_runs_in_full(pipe: Any) -> None:
    sample, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, TOKENS, WIDTH)
    with clockwork(pipe.unet, 4) as method, torch.no_grad():
        plain = None
        method.steps.reset([9.0, 8.0, 7.0, 6.0])
        pipe.unet(sample, 9, text)
        method.steps.tick()
        with method.steps.stream("late"):
            assert method.context.full
            plain = pipe.unet(sample + 1, 8, text).sample
        assert not method.context.full
    with torch.no_grad():
        assert torch.equal(pipe.unet(sample + 1, 8, text).sample, plain)


def test_attached_within_a_run(pipe: Any) -> None:
    """As where another method holds the clock already: what comes first is a full pass."""
    sample, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, TOKENS, WIDTH)
    with step_clock(pipe.scheduler) as clock:
        clock.reset([4.0, 3.0, 2.0, 1.0])
        clock.tick()
        with clockwork(pipe, 2) as method, torch.no_grad():
            with pytest.raises(RuntimeError, match="step"):
                pipe.unet(sample, 3, text)
            clock.tick()
            for full in (True, False):
                assert method.context.full == full
                pipe.unet(sample, 2, text)
                clock.tick()


def test_two_calls_in_a_step_without_streams(pipe: Any) -> None:
    sample, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, TOKENS, WIDTH)
    with clockwork(pipe):
        pipe.scheduler.set_timesteps(4)
        pipe.unet(sample, 9, text)
        with pytest.raises(RuntimeError, match=r"steps\.stream"):
            pipe.unet(sample, 9, text)


def test_call_before_any_reset_and_after_the_end(pipe: Any) -> None:
    sample, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, TOKENS, WIDTH)
    for method in METHODS.values():
        with method(pipe):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="outside a run"):
                    pipe.unet(sample, 9, text)
                draw(pipe, steps=2)


@pytest.mark.parametrize("ran", [False, True])
def test_scheduler_exchanged_while_attached(pipe: Any, ran: bool) -> None:
    with clockwork(pipe):
        if ran:
            draw(pipe)
        pipe.scheduler = DDIMScheduler(**BETAS)
        with pytest.raises(RuntimeError, match="scheduler was exchanged"):
            draw(pipe)


def test_batch_changes_within_a_run(pipe: Any) -> None:
    def no_guidance(pipe: Any, step: int, _: Any, tensors: Any) -> Any:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    with clockwork(pipe), pytest.raises(RuntimeError, match="batch changed within a run"):
        draw(
            pipe,
            callback_on_step_end=no_guidance,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


@methods
def test_copies_are_refused(pipe: Any, method: Method) -> None:
    with method(pipe):
        for thing in (pipe.unet, pipe.unet.mid_block, pipe.scheduler):
            with pytest.raises(RuntimeError, match="before attaching"):
                copy.deepcopy(thing)
    copied = make_pipe()
    copied.unet = copy.deepcopy(pipe.unet)
    assert torch.equal(draw(copied), draw(pipe))


def test_one_method_at_a_time(pipe: Any) -> None:
    plain = draw(pipe)
    with clockwork(pipe):
        with pytest.raises(ValueError, match="attached to this UNet already"), deepcache(pipe):
            pass
        draw(pipe)
    assert torch.equal(draw(pipe), plain)


@methods
def test_precision_changes_while_attached(pipe: Any, method: Method) -> None:
    """As `.to(device)` does: a learned adaptor follows the model."""
    with method(pipe) as attached:
        first = draw(pipe)
        pipe.to(torch.float64)
        inputs = {name: tensor.double() for name, tensor in texts().items()}
        assert draw(pipe, **inputs).dtype == torch.float64
        pipe.to(torch.float32)
        assert torch.equal(draw(pipe), first)
        passes = attached.passes
    assert passes[0]


class Fetch(ModelHook):
    """Sequential offloading in miniature: a layer has its weights only while it runs."""

    def init_hook(self, module: Any) -> Any:
        self.store = {name: p.data.clone() for name, p in module.named_parameters(recurse=False)}
        return self.post_forward(module, module)

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        for name, weight in self.store.items():
            getattr(module, name).data = weight
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        for name, weight in self.store.items():
            getattr(module, name).data = torch.full_like(weight, torch.nan)
        return output


def fetch_layer_by_layer(pipe: Any) -> None:
    for module in pipe.unet.modules():
        if module._parameters:
            add_hook_to_module(module, Fetch())


OFFLOADS = {
    "layers": fetch_layer_by_layer,
    "networks": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("offload_first", [True, False])
@pytest.mark.parametrize("name", ["adaptor", "faster diffusion"])
def test_cpu_offload(pipe: Any, name: str, offload_first: bool, offload: Any) -> None:
    """accelerate's hooks replace `forward` too, and may come before or after ours."""
    method, plain = METHODS[name], draw(pipe)
    adaptor = trained(pipe.unet)  # before its base has no weights to see
    if name == "adaptor":
        method = lambda pipe: clockwork(pipe, 2, adaptor)  # noqa: E731
    with method(pipe):
        expected = draw(pipe)
    if offload_first:
        offload(pipe)
    with method(pipe):
        if not offload_first:
            offload(pipe)
        assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), plain)


def test_drift_follows_the_features(pipe: Any) -> None:
    """Still features are reused up to the limit; a jump brings a full pass with the next step."""
    text = torch.zeros(1, TOKENS, WIDTH)
    still = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = [still] * 6 + [-still] + [-still] * 5
    clock = {"drift": 0.5, "longest": 4}
    with clockwork(pipe.unet, clock) as method, torch.no_grad():
        method.steps.reset([500.0] * len(samples))
        for sample in samples:
            pipe.unet(sample, 500, text)
            method.steps.tick()
        passes = "".join("F" if full else "-" for full in method.passes)
    # Two steps until a move is known, four reused, the fifth in full by the limit …
    assert passes == "FF----F" + "F" + "----"


class Transformer(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (SimpleNamespace(transformer=Transformer(), scheduler=None), "transformer"),
        (Transformer(), "transformer"),
        (torch.nn.Linear(1, 1), "UNet2DConditionModel"),
        (SimpleNamespace(scheduler=None), "no UNet"),
        (SimpleNamespace(unet=make_unet(), scheduler=None), "no scheduler"),
        (
            diffusers.UNetSpatioTemporalConditionModel(
                block_out_channels=(32, 32),
                down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
                up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
                num_attention_heads=(1, 1),
                cross_attention_dim=8,
                projection_class_embeddings_input_dim=24,
                addition_time_embed_dim=8,
            ),
            "SpatioTemporal",
        ),
    ],
)
def test_models_that_cannot_be_cut(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught, clockwork(target):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cut": Stage(0), "clock": 2}, "stage=0: allowed on this UNet are 1 to 2"),
        ({"cut": Stage(3), "clock": 2}, "stage=3: allowed on this UNet are 1 to 2"),
        ({"cut": Branch(9), "clock": 2}, "branch=9: allowed on this UNet are 0 to 8"),
        ({"cut": Stage(), "clock": "often"}, "clock=often"),
        ({"cut": Stage(), "clock": 2, "predictor": "psychic"}, "predictor=psychic"),
        ({"cut": Stage(), "clock": 2, "predictor": [1]}, r"predictor=\[1\]"),
        ({"cut": Branch(), "clock": 2, "predictor": "resnet"}, "need a stage"),
        ({"cut": Encoder(), "clock": {"drift": 1}}, "no features before it"),
    ],
)
def test_settings_that_do_not_fit(pipe: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught, reuse(pipe, **settings):
        pass
    assert "\n" not in str(caught.value)
    draw(pipe)


def test_nothing_to_leave_out() -> None:
    unet = make_unet((1, 0), mid_block_type=None)
    with pytest.raises(ValueError, match="nothing out"), reuse(unet, Branch(5), clock=2):
        pass
    assert copy.deepcopy(unet) is not unet
