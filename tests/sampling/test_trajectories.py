"""The loop against diffusers' own; the store against what was put in."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from edgegen.pipelines.variants import with_guidance_input
from edgegen.sampling.generate import noise_generator
from edgegen.sampling.trajectories import TrajectoryStore, denoise

WIDTH = 8


@pytest.fixture
def pipe() -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    made = StableDiffusionPipeline(
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def texts(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.randn(2, batch, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    return made[0], made[1]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "Heun", "EulerAncestral", "PNDM", "UniPCMultistep", "LCM"]
)
def test_the_latents_are_those_of_diffusers(pipe: Any, name: str, guidance: float) -> None:
    name = {"Heun": "HeunDiscrete", "EulerAncestral": "EulerAncestralDiscrete"}.get(name, name)
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config)
    text, negative = texts(2)
    size = {"height": 8 * pipe.vae_scale_factor, "width": 6 * pipe.vae_scale_factor}
    expected: list[torch.Tensor] = []

    def keep(_: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        expected.append(given["latents"].clone())
        return {}

    pipe(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[noise_generator(0, i) for i in range(2)],
        output_type="latent",
        callback_on_step_end=keep,
        **size,
    )
    generators = [noise_generator(0, i) for i in range(2)]
    noise = torch.cat([torch.randn(1, 4, 8, 6, generator=each) for each in generators])
    found = list(
        denoise(
            pipe.unet,
            pipe.scheduler,
            noise,
            text,
            negative,
            steps=4,
            guidance=guidance,
            generators=generators,
        )
    )
    assert [step.index for step in found] == list(range(len(expected)))
    assert [float(step.time) for step in found] == [float(t) for t in pipe.scheduler.timesteps]
    for step, latents in zip(found, expected, strict=True):
        assert torch.equal(step.following, latents)
        assert not step.output.requires_grad
    assert torch.equal(found[0].latents, noise * pipe.scheduler.init_noise_sigma)
    for step, following in pairwise(found):
        assert torch.equal(step.following, following.latents)


@pytest.mark.parametrize("guidance", [1.0, 3.3])
def test_a_scale_that_is_an_input_goes_in_as_diffusers_gives_it(pipe: Any, guidance: float) -> None:
    pipe.unet = with_guidance_input(pipe.unet, 16)
    torch.nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight)
    text, negative = texts(1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    size = 8 * pipe.vae_scale_factor
    expected = pipe(
        prompt_embeds=text,
        num_inference_steps=3,
        guidance_scale=guidance,
        latents=noise.clone(),
        height=size,
        width=size,
        output_type="latent",
    ).images

    def last(scale: float) -> torch.Tensor:
        run = denoise(pipe.unet, pipe.scheduler, noise, text, negative, steps=3, guidance=scale)
        return list(run)[-1].following

    assert torch.equal(last(guidance), expected)
    assert not torch.equal(last(guidance + 1), expected)


def test_nothing_runs_before_it_is_asked_for(pipe: Any) -> None:
    calls: list[None] = []
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(None))
    text, negative = texts(1)
    run = denoise(pipe.unet, pipe.scheduler, torch.zeros(1, 4, 8, 8), text, negative, steps=3)
    for count in (1, 2):
        next(run)
        assert len(calls) == count


# The store


def rows(*numbers: int) -> dict[str, torch.Tensor]:
    base = torch.tensor(numbers, dtype=torch.float32)
    return {
        "latents": base[:, None, None] + torch.arange(6).reshape(2, 3) / 8,
        "time": base[:, None] / 4,
    }


def test_rows_come_back(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path, {"steps": 4}, rows=10)
    assert store.missing([3, 1, 9]) == [3, 1, 9]
    store.put([3, 1], rows(3, 1))
    store.put([9], rows(9))
    assert store.missing([1, 2, 3, 9, 0]) == [2, 0]
    for opened in (store, TrajectoryStore(tmp_path, {"steps": 4}, rows=10)):
        found = opened.get([9, 1, 1])
        assert found.keys() == {"latents", "time"}
        for name, value in rows(9, 1, 1).items():
            assert found[name].dtype == torch.float32
            assert torch.equal(found[name], value)
    with pytest.raises(KeyError, match="trajectory 2 was not made yet"):
        store.get([1, 2])


def test_values_are_rounded_once(tmp_path: Path) -> None:
    value = {"x": torch.randn(4, 50, generator=torch.Generator().manual_seed(0))}
    half = TrajectoryStore(tmp_path, {}, rows=4)
    half.put(range(4), {"x": value["x"].bfloat16()})
    assert torch.equal(half.get(range(4))["x"], value["x"].bfloat16().half().float())
    full = TrajectoryStore(tmp_path, {}, rows=4, dtype="float32")
    assert full.missing([0]) == [0]  # another store
    full.put(range(4), value)
    assert torch.equal(full.get(range(4))["x"], value["x"])
    assert full.folder.parent == half.folder.parent


def test_other_settings_are_another_store(tmp_path: Path) -> None:
    TrajectoryStore(tmp_path, {"steps": 4}, rows=10).put([0], rows(0))
    for settings, count in (({"steps": 5}, 10), ({"steps": 4}, 11)):
        assert TrajectoryStore(tmp_path, settings, rows=count).missing([0]) == [0]


def test_a_row_broken_off_was_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrajectoryStore(tmp_path, {}, rows=4)
    store.put([0], rows(0))
    flush, count = np.memmap.flush, [0]

    def dies(self: Any) -> None:
        count[0] += 1
        if count[0] == 2:  # one of two files is written
            raise KeyboardInterrupt
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "flush", dies)
        with pytest.raises(KeyboardInterrupt):
            store.put([1], rows(1))
    again = TrajectoryStore(tmp_path, {}, rows=4)
    assert again.missing([0, 1]) == [1]
    again.put([1], rows(1))
    assert torch.equal(again.get([1])["time"], rows(1)["time"])
    assert not [name for name in os.listdir(again.folder) if name.startswith(".")]


def test_two_processes_share_it(tmp_path: Path) -> None:
    """Both open it before either has written; each writes rows of its own."""
    one, two = (TrajectoryStore(tmp_path, {}, rows=4) for _ in range(2))
    assert one.missing([0]) == two.missing([0]) == [0]
    one.put([0], rows(0))
    two.put([1], rows(1))
    for store in (one, two):
        assert store.missing([0, 1, 2]) == [2]
        assert torch.equal(store.get([0, 1])["latents"], rows(0, 1)["latents"])


def test_what_does_not_fit(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path, {}, rows=4)
    with pytest.raises(ValueError, match="x does not fit float16: use float32"):
        store.put([0], {"x": torch.tensor([1e5])})
    assert store.missing([0]) == [0]
    store.put([0], rows(0))
    with pytest.raises(ValueError, match="hold"):
        store.put([1], {"x": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="hold"):
        store.put([1], {name: value[:, :1] for name, value in rows(1).items()})
    with pytest.raises(ValueError, match="allowed are float16, float32"):
        TrajectoryStore(tmp_path, {}, rows=4, dtype="int8")
    with pytest.raises(ValueError, match="0 trajectories: must be 1 or more"):
        TrajectoryStore(tmp_path, {}, rows=0)
