"""Training of a UNet that needs no classifier-free guidance any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ..losses.diffusion import diffuse, weighted_error
from ..pipelines.variants import with_guidance_input
from ..sampling.guidance import (
    EDIT_SCALES,
    edit_guidance_embedding,
    guidance_embedding,
    guide,
    guide_edit,
)
from .denoising import DenoisingModule, TaughtModule
from .editing import EditingModule
from .optimization import step_generator

UNTOLD = 0.1
_USUAL = dict(zip(("guidance", "image_guidance"), EDIT_SCALES, strict=True))


class _Guided(TaughtModule):
    """What students of a guided teacher share.

    Args:
        tokenizer: of the empty prompt.
    """

    empty: Tensor

    def __init__(
        self, student: nn.Module, teacher: nn.Module, tokenizer: Any, *args: Any, **options: Any
    ) -> None:
        if teacher.config["time_cond_proj_dim"] is not None:  # type: ignore[index]
            raise ValueError("teacher: takes the guidance scale as an input, so it needs none")
        super().__init__(student, teacher, *args, **options)
        tokens = tokenizer("", padding="max_length", truncation=True).input_ids
        self.register_buffer("empty", torch.tensor(tokens), persistent=False)

    def _branches(self, noisy: Tensor, timesteps: Tensor, text: Tensor, count: int) -> list[Tensor]:
        """The teacher's predictions for `count` batches one after the other."""
        with torch.no_grad():
            times = timesteps.repeat(count)
            out: Tensor = self._teacher[0](noisy, times, text, return_dict=False)[0]
        return list(out.chunk(count))


class GuidanceModule(_Guided):
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
        low, high = scale_range("scale", scale)
        if low < high:
            unet = with_guidance_input(unet, width)  # type: ignore[arg-type]
        super().__init__(unet, teacher, tokenizer, clip, scheduler, optimizer, **options)
        self.scales, self.width = (low, high), width if low < high else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        latents, tokens = batch
        noise, timesteps = self.noise(latents, batch_idx)
        alpha_bar = self.alpha_bar[timesteps]
        noisy = diffuse(latents, noise, alpha_bar).contiguous(memory_format=torch.channels_last)
        scale = draw_scales(self, self.scales, self.seed + 1, len(latents), batch_idx)
        text = self.text_encoder(tokens)[0]
        empty = self.text_encoder(self.empty[None])[0].expand_as(text)
        both = torch.cat([noisy, noisy]), timesteps, torch.cat([empty, text])
        without, given = self._branches(*both, 2)
        target = guide(without, given, scale)
        condition = None if self.width is None else guidance_embedding(scale, self.width)
        output = self._forward[0](
            noisy, timesteps, text, timestep_cond=condition, return_dict=False
        )[0]
        kind = self.scheduler.config.prediction_type
        loss = weighted_error(output, target, alpha_bar, kind, self.gamma)
        self.log("train/loss", loss)
        return loss


class EditGuidanceModule(_Guided, EditingModule):
    """Predicts in one evaluation what an editor predicts in three, under both of its guidances.

    ε̃ = ε(∅, ∅) + s_I [ε(I, ∅) − ε(∅, ∅)] + s_T [ε(I, T) − ε(I, ∅)] of the teacher, on noisy latents
    of the targets (MoViE, arXiv 2412.06578). Batches are those of `data.edit_latents.EditData`,
    which must drop nothing.

    Args:
        unet, teacher, clip, tokenizer, scheduler, optimizer, options: as of `GuidanceModule`.
        scale, image_scale: of guidance by instruction and by picture, s_T and s_I: numbers; or the
            ends of ranges, from which they are drawn for every sample: the student then gets both
            as inputs, see `sampling.guidance.edit_guidance`.
        width: of the features of both scales together.
        untold: share of samples for which it gets neither and learns the scales of `sampling`: as
            in diffusers' own pipeline with `guidance_scale=1`.

    Raises:
        ValueError: other scales, a teacher that is guided already, or `text_lr`.
    """

    def __init__(
        self,
        unet: nn.Module,
        teacher: nn.Module,
        clip: Any,
        tokenizer: Any,
        scheduler: SchedulerMixin,
        optimizer: dict[str, Any],
        scale: float | Sequence[float] = 7.5,
        image_scale: float | Sequence[float] = 1.5,
        width: int = 512,
        untold: float = UNTOLD,
        **options: Any,
    ) -> None:
        self.scales = scale_range("scale", scale), scale_range("image_scale", image_scale)
        drawn = any(low < high for low, high in self.scales)
        self.untold = checked_share("untold", untold)
        if drawn:
            unet = with_guidance_input(unet, width)  # type: ignore[arg-type]
        super().__init__(unet, teacher, tokenizer, clip, scheduler, optimizer, **options)
        if not drawn and self.sampling.get("guidance", 1) != 1:
            raise ValueError(
                f"module.sampling.guidance={self.sampling['guidance']:g}: the student has its "
                "guidance inside: must be 1"
            )
        self.width = width if drawn else None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if any(getattr(self.trainer.datamodule, "drops", ())):  # type: ignore[attr-defined]
            raise ValueError(
                "data.drop_text, data.drop_image, data.drop_both: must be 0, for the teacher's "
                "branches need both conditions"
            )

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        source, target, tokens = batch
        noise, timesteps = self.noise(target, batch_idx)
        alpha_bar = self.alpha_bar[timesteps]
        noisy = diffuse(target, noise, alpha_bar)
        seen = torch.cat([noisy, source], 1).contiguous(memory_format=torch.channels_last)
        blind = torch.cat([noisy, torch.zeros_like(source)], 1)
        text = self.text_encoder(tokens)[0]
        empty = self.text_encoder(self.empty[None])[0].expand_as(text)
        three = torch.cat([blind, seen, seen]), timesteps, torch.cat([empty, empty, text])
        scales = [
            draw_scales(self, ends, self.seed + 1 + place, len(target), batch_idx)
            for place, ends in enumerate(self.scales)
        ]
        condition = None
        if self.width is not None:
            told = draw_told(self, self.untold, len(target), batch_idx)
            condition = edit_guidance_embedding(scales[0], scales[1], self.width) * told[:, None]
            usual = [self.sampling.get(key, each) for key, each in _USUAL.items()]
            scales = [torch.where(told, *pair) for pair in zip(scales, usual, strict=True)]
        neither, image, both = self._branches(*three, 3)
        wanted = guide_edit(neither, image, both, scales[0], scales[1])
        output = self._forward[0](
            seen, timesteps, text, timestep_cond=condition, return_dict=False
        )[0]
        kind = self.scheduler.config.prediction_type
        loss = weighted_error(output, wanted, alpha_bar, kind, self.gamma)
        self.log("train/loss", loss)
        return loss


def draw_scales(
    module: lightning.LightningModule,
    ends: tuple[float, float],
    seed: int,
    count: int,
    batch_idx: int,
) -> Tensor:
    """(count,) scales between the ends, functions of the seed and the batch's place alone."""
    generator = step_generator(module, seed, batch_idx)
    uniform = torch.rand(count, generator=generator, device=module.device)
    return ends[0] + (ends[1] - ends[0]) * uniform


def checked_share(name: str, share: Any) -> float:
    """Raises ValueError for what is no share from 0 to below 1."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"module.{name}={share}: must be a share, from 0 to below 1")
    return float(share)


def draw_told(module: DenoisingModule, untold: float, count: int, batch_idx: int) -> Tensor:
    """(count,) bool: which samples of a batch are told their scales, all but a share `untold`."""
    return draw_scales(module, (0.0, 1.0), module.seed + 3, count, batch_idx) >= untold


def scale_range(name: str, scale: Any) -> tuple[float, float]:
    """The ends of what a scale is drawn from; both the same for one number.

    Raises ValueError for anything else, or below 1.
    """
    ends = list(scale) if isinstance(scale, Sequence) else [scale, scale]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 1 <= ends[0] <= ends[1]:
        raise ValueError(f"{name}={scale}: must be a number from 1, or [low, high] of those")
    return float(ends[0]), float(ends[1])
