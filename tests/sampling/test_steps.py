from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from edgegen.pipelines.schedulers import scheduler_names
from edgegen.sampling.steps import StepClock, step_clock

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def make(unet: Any, scheduler: Any, cls: Any = StableDiffusionPipeline) -> Any:
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "feature_extractor": None}
    pipe = cls(
        unet=unet, scheduler=scheduler, safety_checker=None, requires_safety_checker=False, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, steps: int = 5, **settings: Any) -> torch.Tensor:
    text = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pipe(
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            num_inference_steps=steps,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **settings,
        ).images


class Spy:
    """What the clock says at every evaluation of the UNet, beside the timestep it really gets."""

    def __init__(self, unet: Any, clock: StepClock) -> None:
        self.seen: list[tuple[int | None, int]] = []
        self.times: list[tuple[float, float]] = []
        self.announced = 0
        self.keys: list[Hashable] = []
        clock.listen(self)

        def note(_: Any, args: Any, __: Any) -> None:
            self.seen.append((clock.index, clock.total))
            self.times.append((clock.time, float(args[1])))

        self.remove = unet.register_forward_pre_hook(note, with_kwargs=True).remove

    def begin_step(self) -> None:
        self.announced += 1

    def enter_stream(self, key: Hashable) -> None:
        self.keys.append(key)


@pytest.mark.parametrize("name", scheduler_names())
def test_counts_evaluations_under_every_scheduler(unet: Any, name: str) -> None:
    cls = getattr(diffusers, name)
    taken = inspect.signature(cls).parameters
    scheduler = cls(**{key: value for key, value in BETAS.items() if key in taken})
    pipe = make(unet, scheduler)
    plain = draw(pipe, height=64, width=64)
    with step_clock(scheduler) as clock:
        spy = Spy(unet, clock)
        timed = draw(pipe, height=64, width=64)
        spy.remove()
        count = len(spy.seen)
        assert spy.seen == [(i, count) for i in range(count)]
        assert all(told == given for told, given in spy.times)
        assert clock.index == count
        assert not clock.running
    assert torch.equal(plain, timed)
    assert count >= 5 * getattr(scheduler, "order", 1) - 1


@pytest.mark.parametrize(
    "cls",
    [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler],
    ids=lambda cls: cls.__name__,
)
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.9, 1.0])
def test_shortened_schedules_of_img2img(unet: Any, cls: Any, strength: float) -> None:
    scheduler = cls(**BETAS)
    if cls is PNDMScheduler:
        scheduler.register_to_config(skip_prk_steps=True)
    pipe = make(unet, scheduler, StableDiffusionImg2ImgPipeline)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with step_clock(scheduler) as clock:
        spy = Spy(unet, clock)
        draw(pipe, steps=10, image=latents, strength=strength)
        spy.remove()
        count = len(spy.seen)
        assert spy.seen == [(i, count) for i in range(count)]
        assert all(told == given for told, given in spy.times)
        assert not clock.running


def test_a_timestep_by_value_is_found(unet: Any) -> None:
    """Loops of one's own may hand on plain numbers."""
    scheduler = DDIMScheduler(**BETAS)
    with step_clock(scheduler) as clock:
        scheduler.set_timesteps(10)
        scheduler.scale_model_input(torch.zeros(1), int(scheduler.timesteps[4]))
        assert clock.total == 6
        assert clock.time == float(scheduler.timesteps[4])


@pytest.mark.parametrize("cls", [EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_signatures_stay_and_nothing_is_left(unet: Any, cls: Any) -> None:
    scheduler = cls(**BETAS)
    names = ("set_timesteps", "step", "scale_model_input")
    before = {name: inspect.signature(getattr(scheduler, name)) for name in names}
    attributes = set(scheduler.__dict__)
    with step_clock(scheduler):
        assert {name: inspect.signature(getattr(scheduler, name)) for name in names} == before
    assert set(scheduler.__dict__) == attributes
    with pytest.raises(KeyError), step_clock(scheduler):
        raise KeyError
    assert set(scheduler.__dict__) == attributes


def test_two_methods_share_a_clock(unet: Any) -> None:
    scheduler = DDIMScheduler(**BETAS)
    with step_clock(scheduler) as first:
        with step_clock(scheduler) as second:
            assert first is second
        draw(make(unet, scheduler), height=64, width=64)
        assert first.index == 5
    assert "step" not in scheduler.__dict__


def test_another_wrapper_around_ours_outlives_it() -> None:
    scheduler = DDIMScheduler(**BETAS)
    with step_clock(scheduler) as clock:
        ours = scheduler.set_timesteps
        scheduler.set_timesteps = lambda *args: ours(*args)
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(7)
    assert len(scheduler.timesteps) == 7
    assert clock.total == 4


def test_copies_are_refused_while_driven(unet: Any) -> None:
    scheduler = DDIMScheduler(**BETAS)
    with step_clock(scheduler), pytest.raises(RuntimeError, match="before attaching"):
        copy.deepcopy(make(unet, scheduler).scheduler)
    assert copy.deepcopy(scheduler).config == scheduler.config


def test_an_exception_and_a_new_run(unet: Any) -> None:
    scheduler = DDIMScheduler(**BETAS)
    pipe = make(unet, scheduler)

    def stop(pipe: Any, step: int, *_: Any) -> Any:
        if step == 2:
            raise KeyError
        return {}

    with step_clock(scheduler) as clock:
        with pytest.raises(KeyError):
            draw(pipe, height=64, width=64, callback_on_step_end=stop)
        assert clock.running
        spy = Spy(unet, clock)
        draw(pipe, height=64, width=64)
        spy.remove()
        assert [index for index, _ in spy.seen] == list(range(5))


def test_by_hand_with_streams() -> None:
    clock = StepClock()
    keys: list[Hashable] = []

    class Listener:
        def begin_step(self) -> None:
            keys.append(clock.index)

        def enter_stream(self, key: Hashable) -> None:
            keys.append(key)

    with pytest.raises(RuntimeError, match="set_timesteps"):
        _ = clock.time
    stop = clock.listen(Listener())
    clock.tick()  # nothing to count yet
    clock.reset([900.0, 500.0])
    with clock.stream("a"), clock.stream("b"):
        assert clock.key == "b"
    with pytest.raises(KeyError), clock.stream("c"):
        raise KeyError
    assert clock.key is None
    clock.tick()
    assert clock.time == 500.0
    clock.tick()
    assert not clock.running
    stop()
    clock.reset([1.0])
    assert keys == [0, "a", "b", "a", None, "c", None, 1, 2]
