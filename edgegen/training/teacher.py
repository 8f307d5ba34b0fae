"""The frozen model whose trajectories a student learns from."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from ..api import load
from ..pipelines.architectures import architecture, build
from ..pipelines.layout import channels_last
from ..pipelines.load import DTYPES, OPTIONS
from ..pipelines.schedulers import make_scheduler, scheduler_config
from ..reuse.adaptor import text_width
from ..reuse.fingerprint import fingerprint
from ..sampling.trajectories import Step, denoise

# Stable Diffusion's noise schedule, for weights that come without one.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TOKENS = 77


class Teacher:
    """A text-to-image model of the Stable Diffusion family, and how it is sampled from.

    Plain Python and no module: its weights are in no checkpoint of what is trained.

    Args:
        model: a `configs/model/NAME.yaml`: `source`, or `components` for random weights.
        steps, guidance, scheduler, negative_prompt: how it will be used.
        height, width: in pixels; default the model's own.
        dtype: of its weights: float32, bfloat16 or float16.
        random_weights: random ones instead of those of a source, and random text features: to try
            out memory and speed before anything is downloaded.

    Raises:
        ValueError, FileNotFoundError: no such model, one that is none of Stable Diffusion 1.x or
            2.x, or sampling settings that it does not take.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        steps: int,
        guidance: float,
        scheduler: str = "DPMSolverMultistep",
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        dtype: str = "float32",
        random_weights: bool = False,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"teacher.steps={steps}: must be a whole number, 1 or more")
        if isinstance(guidance, bool) or not isinstance(guidance, int | float) or guidance < 0:
            raise ValueError(f"teacher.guidance={guidance}: must be a number, 0 or more")
        if dtype not in DTYPES:
            raise ValueError(f"teacher.dtype={dtype}: must be one of {', '.join(DTYPES)}")
        self.steps, self.guidance, self.negative_prompt = steps, guidance, negative_prompt
        self.random_weights = random_weights
        self.pipe: Any = None
        name = model.get("name")
        if random_weights:
            config = architecture(model).components.get("unet")
            if config is None:
                raise ValueError(f"model={name}: has no UNet to learn from")
            self.unet: Any = build(config, "cpu")
            nn.Module.to(self.unet, DTYPES[dtype])  # diffusers' own warns for real weights
            current: Any = DDIMScheduler(**_SCHEDULE, steps_offset=1, clip_sample=False)
            self._factor = 8
        else:
            if model.get("source") is None:
                raise ValueError(
                    f"model={name}: says no weights; give model.source=… or "
                    "module.teacher.random_weights=true to try it out"
                )
            options = {key: model[key] for key in OPTIONS if model.get(key) is not None}
            pipe = load(model["source"], **{"dtype": dtype, **options})
            if not isinstance(pipe, StableDiffusionPipeline):
                raise ValueError(
                    f"model={model['source']}: is a {type(pipe).__name__}; allowed are models of "
                    "Stable Diffusion 1.x and 2.x that take a text alone"
                )
            self.unet, current, self.pipe = pipe.unet, pipe.scheduler, pipe
            self._factor = pipe.vae_scale_factor
        channels_last(self.unet.requires_grad_(False).eval())
        self.scheduler = make_scheduler(scheduler, current)
        try:
            self.scheduler.set_timesteps(steps)
        except ValueError as error:
            raise ValueError(f"teacher.steps={steps}: {scheduler}: {error}") from error
        self.evaluations = len(self.scheduler.timesteps)
        self._size = self._latent_size(model, height, width)

    def to(self, device: torch.device) -> None:
        """Bring all that runs to a device."""
        self.unet.to(device)
        if self.pipe is not None:
            self.pipe.text_encoder.requires_grad_(False).to(device)

    def about(self) -> dict[str, Any]:
        """All that a trajectory depends on beside prompt and noise."""
        parts = [self.unet]
        if self.pipe is not None:
            parts.append(self.pipe.text_encoder)
        return {
            "parts": [fingerprint(part) for part in parts],
            "scheduler": [type(self.scheduler).__name__, scheduler_config(self.scheduler)],
            "steps": self.steps,
            "guidance": float(self.guidance),  # 3 and 3.0 are one teacher
            "negative_prompt": self.negative_prompt,
            "size": self._size,
        }

    def run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        gradient: bool = False,
    ) -> Iterator[Step]:
        """Denoise one sample a prompt from the noise of its seed; see `trajectories.denoise`.

        In as many steps as it will be used with, where none are given.
        """
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (self.unet.config.in_channels, *self._size)
        noise = torch.cat([torch.randn(1, *shape, generator=each) for each in generators])
        text, negative = self.encode(prompts)
        return denoise(
            self.unet,
            self.scheduler,
            noise.to(text.device),
            text,
            negative,
            steps=self.steps if steps is None else steps,
            guidance=self.guidance,
            generators=generators,
            gradient=gradient,
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text features (B, T, D) of the prompts, and of the negative one where both are needed."""
        device, count = self.unet.device, len(prompts)
        guided = self.guidance > 1 and self.unet.config.time_cond_proj_dim is None
        if self.pipe is None:
            text = torch.stack([self._random_features(prompt) for prompt in prompts])
            negative = self._random_features(self.negative_prompt).expand_as(text)
            there = {"device": device, "dtype": self.unet.dtype}
            return text.to(**there), negative.to(**there) if guided else None
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # or every prompt that is too long would be printed
        try:
            text, negative = self.pipe.encode_prompt(
                list(prompts), device, 1, guided, negative_prompt=[self.negative_prompt] * count
            )
        finally:
            logging.set_verbosity(level)
        return text, negative if guided else None

    def _random_features(self, prompt: str) -> Tensor:
        """(T, D), a function of the prompt, in place of a text encoder's."""
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(prompt.encode()))
        return torch.randn(_TOKENS, text_width(self.unet), generator=generator)

    def _latent_size(
        self, model: Mapping[str, Any], height: int | None, width: int | None
    ) -> tuple[int, int]:
        own = self.unet.config.sample_size
        own = (own, own) if isinstance(own, int) else tuple(own)
        sizes = []
        for name, given, side in (("height", height, own[0]), ("width", width, own[1])):
            pixels = given or model.get(name) or side * self._factor
            if not isinstance(pixels, int) or pixels < 8 or pixels % self._factor:
                raise ValueError(
                    f"teacher.{name}={pixels}: must be a multiple of {self._factor} pixels"
                )
            sizes.append(pixels // self._factor)
        return sizes[0], sizes[1]
