"""Denoising frames by an instruction: the guidance branches, the shared noise, the scheduler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)

from ..pipelines.recommended import sampling_of
from ..sampling.generate import default_guidance, noise_generator, noise_seed
from ..sampling.guidance import (
    EDIT_SCALES,
    edit_guidance_embedding,
    guidance_embedding,
    guide,
    guide_edit,
)
from ..sampling.steps import StepClock, undriven
from .attention import Bank, Mode
from .history import SchedulerStates

_EDITORS = (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    LatentConsistencyModelPipeline,
)


@dataclass(frozen=True)
class Edit:
    """What to do to every frame, and how.

    Attributes:
        instruction: to an InstructPix2Pix model what to do ("make it winter"); to a plain Stable
            Diffusion model, which edits by img2img, what is to be seen ("a forest in winter").
        steps: denoising steps, for img2img of the whole way, of which `strength` is gone; None:
            what the model says, else 10.
        guidance: weight of the text; None: what the model says (`sampling.json` in its folder),
            else the pipeline's own.
        image_guidance: weight of the source picture (InstructPix2Pix); None as for the text, 1.5
            where nothing says.
        strength: 0 to 1, how far from the source (img2img).
        negative: what to steer away from.
        seed: of the noise.
        shared_noise: whether all frames share the noise, or each has its own.
    """

    instruction: str
    steps: int | None = None
    guidance: float | None = None
    image_guidance: float | None = None
    strength: float = 0.6
    negative: str = ""
    seed: int = 0
    shared_noise: bool = True

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise ValueError("instruction: is empty; say what to do, as in 'make it winter'")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be 1 or more")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength:g}: must be above 0, and 1 at most")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")


def check_editor(pipe: Any) -> None:
    """Raises ValueError for a pipeline that cannot edit frames."""
    if not isinstance(pipe, _EDITORS):
        names = ", ".join(cls.__name__ for cls in _EDITORS)
        raise ValueError(f"{type(pipe).__name__} cannot edit a video; allowed are {names}")


class FrameDenoiser:
    """One pipeline's denoising of frames, any number at once, one step at a time.

    The scheduler is a copy, so that chunks of frames may take turns; the pipeline's own step clock
    is told of every run and step.

    Args:
        pipe: an InstructPix2Pix or Stable Diffusion pipeline.
        edit: what to do.
        clock: the step clock of `pipe.scheduler`.
        bank: of the pipeline's UNet.

    Attributes:
        first, last: numbers of the first evaluation of the UNet, and of the one behind the last.
        branches: guidance branches.
        states: of the scheduler, chunk by chunk.
        follows_source: whether every step looks at the source's latents.
    """

    def __init__(self, pipe: Any, edit: Edit, clock: StepClock, bank: Bank) -> None:
        check_editor(pipe)
        self.pipe = pipe
        self.edit = edit
        self.clock = clock
        self.bank = bank
        self._recorded = False
        self.device = torch.device(getattr(pipe, "_execution_device", pipe.device))
        self.dtype: torch.dtype = pipe.unet.dtype
        self.follows_source = isinstance(pipe, StableDiffusionInstructPix2PixPipeline)
        own = {"steps": 10, "guidance": default_guidance(pipe), "image_guidance": EDIT_SCALES[1]}
        own |= sampling_of(pipe)
        self.steps = int(own["steps"] if edit.steps is None else edit.steps)
        self.guidance, self.image_guidance = (
            float(own[key] if given is None else given)
            for key, given in (
                ("guidance", edit.guidance),
                ("image_guidance", edit.image_guidance),
            )
        )
        self.branches = self._count_branches()
        self.scheduler = self._new_scheduler()
        self.first = self._first_evaluation()
        self.last = len(self.scheduler.timesteps)
        self.states = SchedulerStates(self.scheduler, self.first)
        self._text, self._time_cond = self._encode_text()

    @property
    def evaluations(self) -> range:
        """Numbers of the evaluations of the UNet that a frame takes."""
        return range(self.first, self.last)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (n, C, h, w) of source frames (n, 3, H, W) in −1 to 1.

        Unscaled for InstructPix2Pix, as it was trained on; the mode, so that nothing is drawn.
        """
        encoded = self.pipe.vae.encode(pixels.to(self.device, self.pipe.vae.dtype))
        tiny = not hasattr(encoded, "latent_dist")
        latents = encoded.latents if tiny else encoded.latent_dist.mode()
        if not self.follows_source:
            latents = latents * self.pipe.vae.config.scaling_factor
        return latents.to(self.dtype).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, H, W, 3) uint8 on the CPU, of latents (n, C, h, w)."""
        vae = self.pipe.vae
        scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
        pictures = (vae.decode(scaled, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
        return (pictures.float().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu()

    def noise(self, shape: Sequence[int], numbers: Sequence[int]) -> torch.Tensor:
        """The initial noise of frames (n, C, h, w): the same for all, unless each has its own."""
        one = (1, *shape[1:])
        if self.edit.shared_noise:
            drawn = torch.randn(one, generator=self._generator(0, 0)).expand(*shape)
        else:
            own = [torch.randn(one, generator=self._generator(n, 0)) for n in numbers]
            drawn = torch.cat(own)
        return drawn.to(self.device, self.dtype)

    def begin(self, source: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """Latents before the first evaluation, of the source's latents (n, C, h, w).

        Args:
            numbers: of the n frames.
        """
        noise = self.noise(source.shape, numbers)
        if self.follows_source:
            return (noise * self.scheduler.init_noise_sigma).contiguous()
        self.states.renew(self.first)
        start = self.scheduler.timesteps[self.first : self.first + 1]
        return self.scheduler.add_noise(source, noise, start).contiguous()

    def start(self) -> None:
        """Tell the step clock of a new run."""
        self.states.begin()
        self.clock.reset(self.scheduler.timesteps, self.first)

    def skip_to(self, evaluation: int) -> None:
        """Tell the step clock of a run that was stopped before this evaluation."""
        self.start()
        for _ in range(self.first, evaluation):
            self.clock.tick()

    def advance(
        self,
        mode: Mode,
        evaluation: int,
        key: Hashable,
        latents: torch.Tensor,
        source: Any,
        numbers: Sequence[int],
    ) -> torch.Tensor:
        """Latents after the evaluation of that number, (n, C, h, w) as before.

        Args:
            mode: what the bank is to do.
            key: tells this batch of frames from the others of the run; the same on every step.
            source: latents of the source frames, where `follows_source`.
            numbers: of the n frames.
        """
        self.bank.mode, self.bank.step, self.bank.branches = mode, evaluation, self.branches
        self.bank.frames = numbers
        self.states.enter(key, evaluation)
        time = self.scheduler.timesteps[evaluation]
        try:
            with self.clock.stream(key):
                predicted = self._guided(latents, source, time)
        finally:
            self.bank.mode = "plain"
        if mode == "record" and not self._recorded:
            if not self.bank.steps():
                raise ValueError(
                    "the anchors left no keys and values in the first step: something stands in "
                    "for the UNet's attention, and anchors would change nothing"
                )
            self._recorded = True
        extra: dict[str, Any] = {}
        if self.states.takes_generator:  # noise of (seed, step), and of the frame where it has own
            extra["generator"] = [self._generator(number, evaluation + 1) for number in numbers]
        after = self.scheduler.step(predicted, time, latents, **extra, return_dict=False)[0]
        self.states.leave(key)
        return after.contiguous()  # as it comes back from a file: the layout can move the last bits

    def _generator(self, number: int, draw: int) -> torch.Generator:
        seed = self.edit.seed
        return noise_generator(seed if self.edit.shared_noise else noise_seed(seed, number), draw)

    def _guided(self, latents: torch.Tensor, source: Any, time: torch.Tensor) -> torch.Tensor:
        frames, many = len(latents), self.branches
        inputs = self.scheduler.scale_model_input(torch.cat([latents] * many), time)
        if self.follows_source:
            seen = [source, source, torch.zeros_like(source)][:many]
            inputs = torch.cat([inputs, torch.cat(seen)], dim=1)
        extra = {} if self._time_cond is None else {"timestep_cond": self._time_cond}
        out = self.pipe.unet(
            inputs,
            time,
            encoder_hidden_states=self._text.repeat_interleave(frames, 0),
            return_dict=False,
            **extra,
        )[0]
        if many == 1:
            return out
        if self.follows_source:
            text, image, neither = out.chunk(3)
            return guide_edit(neither, image, text, self.guidance, self.image_guidance)
        without, text = out.chunk(2)
        return guide(without, text, self.guidance)

    def _count_branches(self) -> int:
        if self.pipe.unet.config.time_cond_proj_dim is not None or self.guidance <= 1:
            return 1  # distilled: the weight is an input
        if not self.follows_source:
            return 2
        return 3 if self.image_guidance >= 1 else 1  # as diffusers does

    def _encode_text(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text features (branches, T, D) in the order of the branches, and the guidance's."""
        pipe, edit, guided = self.pipe, self.edit, self.branches > 1
        if self.follows_source:
            text = pipe._encode_prompt(edit.instruction, self.device, 1, guided, edit.negative)
        else:
            encoded = pipe.encode_prompt(edit.instruction, self.device, 1, guided, edit.negative)
            text = torch.cat([encoded[1], encoded[0]]) if guided else encoded[0]
        width = pipe.unet.config.time_cond_proj_dim
        if width is None:
            return text, None
        scale = torch.tensor([self.guidance], dtype=torch.float64)
        if self.follows_source:
            by_image = torch.tensor([self.image_guidance], dtype=torch.float64)
            cond = edit_guidance_embedding(scale, by_image, width)
        else:
            cond = guidance_embedding(scale, width)
        return text, cond.to(self.device, self.dtype)

    def _new_scheduler(self) -> Any:
        scheduler = undriven(self.pipe.scheduler)
        try:
            scheduler.set_timesteps(self.steps, device=self.device)
        except ValueError as error:
            name = type(scheduler).__name__
            raise ValueError(f"steps={self.steps}: {name}: {error}") from error
        return scheduler

    def _first_evaluation(self) -> int:
        if self.follows_source:
            return 0
        gone = min(int(self.steps * self.edit.strength), self.steps)
        if gone < 1:
            raise ValueError(
                f"strength={self.edit.strength:g}: leaves none of {self.steps} steps; raise it"
            )
        return (self.steps - gone) * self.scheduler.order
