"""Truths against an ODE solver where the solution is known; and the cache."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from scipy.integrate import solve_ivp
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edgegen.metrics.quality.truths import (
    TruthSettings,
    pipeline_truths,
    truth_scheduler,
    truths,
)
from edgegen.pipelines.digests import pipeline_digest
from edgegen.pipelines.schedulers import make_scheduler
from edgegen.sampling.generate import sample as sample_pipeline

DDIM = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


class Mixture:
    """Narrow Gaussians around random centres, whose denoiser is known."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.centres = torch.randn(12, 8, generator=generator, dtype=torch.float64)
        self.noise = torch.randn(64, 8, generator=generator, dtype=torch.float64)
        self.width = 0.15

    def denoised(self, x: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        """E[x₀ | scale · x₀ + sigma · noise = x]."""
        variance = (scale * self.width) ** 2 + sigma**2
        gap = x[:, None] - scale * self.centres
        weight = (-gap.square().sum(-1) / (2 * variance)).softmax(1)
        near = self.centres + scale * self.width**2 / variance * gap
        return (weight[..., None] * near).sum(1)

    def solution(self) -> Tensor:
        """dy/d ln σ = y − E[x₀ | y] from the last time's σ to the first's (Karras et al. 2022)."""
        cumulated = DDIM.alphas_cumprod.double()
        sigmas = ((1 - cumulated) / cumulated).sqrt()

        def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
            sigma = torch.tensor(np.exp(log_sigma))
            scale = (1 + sigma**2).rsqrt()
            y = torch.from_numpy(flat.reshape(self.noise.shape))
            return (y - self.denoised(y * scale, scale, sigma * scale)).numpy().ravel()

        start = (self.noise / cumulated[-1].sqrt()).numpy().ravel()
        span = float(sigmas[-1].log()), float(sigmas[0].log())
        end = solve_ivp(slope, span, start, rtol=1e-7, atol=1e-8).y[:, -1]
        scale = (1 + sigmas[0] ** 2).rsqrt()
        y = torch.from_numpy(end.reshape(self.noise.shape))
        return self.denoised(y * scale, scale, sigmas[0] * scale)

    def sampled(self, scheduler: SchedulerMixin, steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        x = self.noise
        for time in scheduler.timesteps:
            scale = DDIM.alphas_cumprod[time].double().sqrt()
            sigma = (1 - scale**2).sqrt()
            noise = (x - scale * self.denoised(x, scale, sigma)) / sigma
            x = scheduler.step(noise, time, x).prev_sample
        return x


def test_the_truth_is_the_solution() -> None:
    mixture = Mixture()
    solution = mixture.solution()

    def error(scheduler: SchedulerMixin) -> float:
        gap = mixture.sampled(scheduler, 100) - solution
        return gap.square().mean(1).sqrt().mean().item()

    ours = error(truth_scheduler(DDIM))
    assert ours < 1e-3
    for spacing in ("leading", "trailing", "linspace"):
        assert error(DDIMScheduler.from_config(DDIM.config, timestep_spacing=spacing)) > 10 * ours
        plain = DPMSolverMultistepScheduler.from_config(DDIM.config, timestep_spacing=spacing)
        assert error(plain) > 10 * ours


def test_truth_scheduler_keeps_the_models_schedule() -> None:
    base = DDIMScheduler(beta_start=0.001, beta_end=0.02, prediction_type="v_prediction")
    found = truth_scheduler(truth_scheduler(base))
    assert torch.equal(found.alphas_cumprod, base.alphas_cumprod)
    assert found.config.prediction_type == "v_prediction"
    assert found.config.use_karras_sigmas


SETTINGS = TruthSettings("digest", {"class": "X"}, 2.0, 6, 5)


class Sampler:
    """Pictures that tell prompt and seed; remembers what it was asked for."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.fail_after = fail_after

    def __call__(self, prompts: Sequence[str], seeds: Sequence, steps: int) -> list[Image.Image]:
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(list(prompts))
        assert steps == 100
        return [picture(p, s) for p, s in zip(prompts, seeds, strict=True)]


def picture(prompt: str, seed: object) -> Image.Image:
    number = sum(json.dumps([prompt, seed]).encode())
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))


PROMPTS = [f"prompt {n}" for n in range(7)]
SEEDS = [(0, n) for n in range(7)]
KNOWN = np.stack([np.asarray(picture(p, s)) for p, s in zip(PROMPTS, SEEDS, strict=True)])


def test_batches_have_one_size_and_the_cache_answers_again(tmp_path: Path) -> None:
    sampler = Sampler()
    found = truths(sampler, SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
    np.testing.assert_array_equal(found, KNOWN)
    assert [len(call) for call in sampler.calls] == [3, 3, 3]
    again = truths(sampler, SETTINGS, PROMPTS[::-1], SEEDS[::-1], tmp_path, batch=3)
    np.testing.assert_array_equal(again, KNOWN[::-1])
    assert len(sampler.calls) == 3
    more = truths(sampler, SETTINGS, ["new", *PROMPTS], [9, *SEEDS], tmp_path, batch=3)
    np.testing.assert_array_equal(more[1:], KNOWN)
    assert sampler.calls[3:] == [["new"] * 3]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    killed = Sampler(fail_after=1)
    with pytest.raises(KeyboardInterrupt):
        truths(killed, SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
    sampler = Sampler()
    found = truths(sampler, SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
    np.testing.assert_array_equal(found, KNOWN)
    batches = [PROMPTS[:3], PROMPTS[3:6], PROMPTS[6:] * 3]
    assert sorted(killed.calls + sampler.calls) == batches


def test_what_another_process_has_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    class Slow(Sampler):
        def __call__(self, *args: Any) -> list[Image.Image]:
            truths(Sampler(), SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
            return super().__call__(*args)

    sampler = Slow()
    found = truths(sampler, SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
    np.testing.assert_array_equal(found, KNOWN)
    assert len(sampler.calls) == 1


def test_damaged_pictures_are_made_anew(tmp_path: Path) -> None:
    truths(Sampler(), SETTINGS, PROMPTS, SEEDS, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == 7
    files[0].write_bytes(files[0].read_bytes()[:60])
    files[1].write_bytes(b"nothing")
    Image.new("RGB", (4, 4)).save(files[2])
    sampler = Sampler()
    found = truths(sampler, SETTINGS, PROMPTS, SEEDS, tmp_path, batch=3)
    np.testing.assert_array_equal(found, KNOWN)
    assert len(sampler.calls) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"scheduler": {"class": "Y"}},
        {"guidance": 3.0},
        {"negative_prompt": "ugly"},
        {"versions": ("torch 1",)},
    ],
)
def test_other_settings_find_nothing(tmp_path: Path, change: dict) -> None:
    truths(Sampler(), SETTINGS, PROMPTS, SEEDS, tmp_path)
    sampler = Sampler()
    truths(sampler, dataclasses.replace(SETTINGS, **change), PROMPTS, SEEDS, tmp_path)
    assert len(sampler.calls) == 1


def test_without_a_cache_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(truths(Sampler(), SETTINGS, PROMPTS, SEEDS, None), KNOWN)
    assert not list(tmp_path.iterdir())


def test_misuse_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one seed a prompt"):
        truths(Sampler(), SETTINGS, PROMPTS, SEEDS[1:], tmp_path)
    with pytest.raises(ValueError, match="no prompts"):
        truths(Sampler(), SETTINGS, [], [], tmp_path)
    wider = dataclasses.replace(SETTINGS, width=8)
    with pytest.raises(ValueError, match=r"\(6, 5\) pixels, settings say \(6, 8\)"):
        truths(Sampler(), wider, PROMPTS, SEEDS, tmp_path)
    assert not list(tmp_path.rglob("*.png"))


@pytest.fixture
def pipe(clip_folder: Path) -> StableDiffusionPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(DDIM.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pipelines_keep_their_scheduler(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    options = {"guidance": 2.0, "height": 16, "width": 16, "steps": 6}
    scheduler = pipe.scheduler
    found = pipeline_truths(
        pipe, ["ab", "cd"], [(0, 0), (0, 1)], cache=tmp_path, batch=2, **options
    )
    assert pipe.scheduler is scheduler
    pipe.scheduler = truth_scheduler(scheduler)
    known = sample_pipeline(pipe, ["ab", "cd"], [(0, 0), (0, 1)], **options)
    np.testing.assert_array_equal(found, np.stack([np.asarray(image) for image in known]))
    assert found.std() > 1


@torch.no_grad()
def test_all_samplers_are_compared_with_the_same_truths(
    pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    options: Any = {"guidance": 2.0, "height": 16, "width": 16, "steps": 2, "cache": tmp_path}
    found = []
    # diffusers notes which values of a new scheduler the old one's configuration did not give.
    given = {k: v for k, v in DPMSolverMultistepScheduler().config.items() if k[0] != "_"}
    own = DPMSolverMultistepScheduler.from_config(given)
    for name in ("DDIM", "PNDM", "EulerDiscrete", "UniPCMultistep", "DPMSolverMultistep"):
        pipe.scheduler = make_scheduler(name, own)
        found.append(pipeline_truths(pipe, ["a"], [(0, 0)], **options))
    assert len(list(tmp_path.iterdir())) == 1
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_stale_cache_is_not_used(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    options = {"guidance": 2.0, "height": 16, "width": 16, "steps": 3, "cache": tmp_path}
    before, digest = pipeline_truths(pipe, ["ab"], [(0, 0)], **options), pipeline_digest(pipe)
    assert pipeline_digest(pipe) == digest
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 0.5
    assert pipeline_digest(pipe) != digest
    after = pipeline_truths(pipe, ["ab"], [(0, 0)], **options)
    assert (before != after).any()
    pipe.vae.register_to_config(scaling_factor=0.5)
    assert (pipeline_truths(pipe, ["ab"], [(0, 0)], **options) != after).any()
    assert len(list(tmp_path.iterdir())) == 3
