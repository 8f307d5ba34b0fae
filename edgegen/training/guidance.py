"""Training of a UNet that needs no classifier-free guidance any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ..losses.diffusion import diffuse, weighted_error
from ..pipelines.variants import with_guidance_input
from ..sampling.guidance import guidance_embedding, guide
from .denoising import DenoisingModule
from .optimization import step_generator


class GuidanceModule(DenoisingModule):
    """Predicts in one evaluation what the teacher predicts under classifier-free guidance.

    The student's noise, averages and export are those of `DenoisingModule`; what is
    learned is the teacher's, on noisy latents of the data. Meng et al. 2023, section 3.1.

    Args:
        unet: what is trained.
        teacher: a UNet of the same inputs, frozen; in no checkpoint.
        clip: its text half, or a text encoder alone, conditions both and stays as it is.
        tokenizer: of the empty prompt.
        scheduler: gives ᾱ and the prediction type.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        scale: of guidance; or the ends of a range, from which one is drawn for every sample: the
            student then gets it as an input, and `scale` at sampling means what it did.
        width: of the scale's features, where it is an input.
        options: further arguments of `DenoisingModule`.

    Raises:
        ValueError: another scale, a teacher that is guided already, or `text_lr`.
    """

    empty: Tensor

    def __init__(
        self,
        unet: nn.Module,
        teacher: nn.Module,
        clip: Any,
        tokenizer: Any,
        scheduler: SchedulerMixin,
        optimizer: dict[str, Any],
        scale: float | Sequence[float] = 7.5,
        width: int = 256,
        **options: Any,
    ) -> None:
        low, high = _ends(scale)
        if options.get("text_lr") is not None:
            raise ValueError("module.text_lr: the teacher reads the same text; must be null")
        if teacher.config["time_cond_proj_dim"] is not None:  # type: ignore[index]
            raise ValueError("teacher: takes the guidance scale as an input, so it needs none")
        if low < high:
            unet = with_guidance_input(unet, width)  # type: ignore[arg-type]
        super().__init__(unet, clip, scheduler, optimizer, **options)
        self.scales, self.width = (low, high), width if low < high else None
        teacher = teacher.requires_grad_(False).eval()
        self._teacher = (teacher.to(memory_format=torch.channels_last),)  # type: ignore[call-overload]
        tokens = tokenizer("", padding="max_length", truncation=True).input_ids
        self.register_buffer("empty", torch.tensor(tokens), persistent=False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._teacher[0].to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        latents, tokens = batch
        noise, timesteps = self.noise(latents, batch_idx)
        alpha_bar = self.alpha_bar[timesteps]
        noisy = diffuse(latents, noise, alpha_bar).contiguous(memory_format=torch.channels_last)
        scale = self._draw(len(latents), batch_idx)
        with torch.no_grad():
            text = self.text_encoder(tokens)[0]
            empty = self.text_encoder(self.empty[None])[0].expand_as(text)
            both = self._teacher[0](
                torch.cat([noisy, noisy]),
                torch.cat([timesteps, timesteps]),
                torch.cat([empty, text]),
                return_dict=False,
            )[0]
            without, given = both.chunk(2)
            target = guide(without, given, scale)
        condition = None if self.width is None else guidance_embedding(scale, self.width)
        output = self._forward[0](
            noisy, timesteps, text, timestep_cond=condition, return_dict=False
        )[0]
        kind = self.scheduler.config.prediction_type
        loss = weighted_error(output, target, alpha_bar, kind, self.gamma)
        self.log("train/loss", loss)
        return loss

    def _draw(self, count: int, batch_idx: int) -> Tensor:
        """(count,) scales, functions of the seed and the batch's place alone."""
        low, high = self.scales
        generator = step_generator(self, self.seed + 1, batch_idx)
        uniform = torch.rand(count, generator=generator, device=self.device)
        return low + (high - low) * uniform


def _ends(scale: Any) -> tuple[float, float]:
    ends = list(scale) if isinstance(scale, Sequence) else [scale, scale]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"scale={scale}: must be a number from 1, or [low, high] of those")
    return float(ends[0]), float(ends[1])
