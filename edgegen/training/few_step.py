"""Progressive distillation: half as many denoising steps, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor, nn

from ..losses.diffusion import denoising_loss, diffuse, leap_target, parts_of
from ..sampling.guidance import edit_guidance_embedding, guidance_embedding
from .denoising import TaughtModule
from .guidance import UNTOLD, checked_share, draw_scales, draw_told, scale_range


class FewStepModule(TaughtModule):
    """Learns to do in one DDIM step what the teacher does in two (Salimans & Ho 2022, algorithm 2).

    The student begins as the teacher, which must need no classifier-free guidance: it was distilled
    (`training.guidance`), and takes its scales as inputs or has them inside. What is exported
    samples by DDIM with trailing times, for which `steps` is the number.

    Batches are (latents, tokens), or (source, target, tokens) for editors, which are told by their
    input channels.

    Args:
        unet: what is trained.
        teacher: of the same architecture, frozen; in no checkpoint. It makes 2 · `steps` steps.
        clip: its text half, or a text encoder alone, conditions both and stays as it is.
        scheduler: gives ᾱ and the prediction type.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        steps: of the student, 1 or more; a divisor of half the training steps.
        scale, image_scale: for networks that take guidance as an input: numbers, or the ends of
            ranges from which they are drawn for every sample.
        untold: share of samples of an editor for which it is told neither, as in its training.
        truth: share of samples that learn where their pair leads in place of where the teacher
            does, so that the errors of one halving after another do not add up. Of an open
            instruction it is the mean of all right answers, so keep it small where those matter.
        guided: whether the teacher has its guidance inside, where it takes none as an input.
        options: further arguments of `DenoisingModule`.

    Raises:
        ValueError: other steps or scales, or networks of two kinds.
    """

    alpha_bars: Tensor
    times: Tensor

    def __init__(
        self,
        unet: nn.Module,
        teacher: nn.Module,
        clip: Any,
        scheduler: SchedulerMixin,
        optimizer: dict[str, Any],
        steps: int,
        scale: float | Sequence[float] = 7.5,
        image_scale: float | Sequence[float] = 1.5,
        untold: float = UNTOLD,
        truth: float = 0.0,
        guided: bool = False,
        **options: Any,
    ) -> None:
        own, theirs = (
            [net.config[key] for key in ("in_channels", "out_channels", "time_cond_proj_dim")]  # type: ignore[index]
            for net in (unet, teacher)
        )
        if own != theirs:
            raise ValueError(
                f"teacher: has {theirs} channels in, out and features of guidance, "
                f"the student {own}: must be the same"
            )
        super().__init__(unet, teacher, clip, scheduler, optimizer, **options)
        total = len(self.alpha_bar)
        whole = isinstance(steps, int) and not isinstance(steps, bool) and steps > 0
        if not whole or total % (2 * steps):
            raise ValueError(f"module.steps={steps}: must divide {total // 2}, half of all steps")
        self.steps = steps
        self.width: Any = own[2]
        self.scales = scale_range("scale", scale), scale_range("image_scale", image_scale)
        self.untold = checked_share("untold", untold)
        self.truth = checked_share("truth", truth)
        self.edits = own[0] == 2 * own[1]
        if self.width is None and not guided:
            raise ValueError(
                "teacher: takes no guidance as an input, so it may need three branches or two: "
                "distill it first, or say module.guided=true where it has its guidance inside"
            )
        if self.width is None and self.sampling.get("guidance", 1) != 1:
            raise ValueError(
                f"module.sampling.guidance={self.sampling['guidance']:g}: the teacher has its "
                "guidance inside: must be 1"
            )
        self.kind = (
            StableDiffusionInstructPix2PixPipeline if self.edits else StableDiffusionPipeline
        )
        # ᾱ at the teacher's times, from none of the noise to all of it.
        times = torch.arange(1, 2 * steps + 1) * (total // (2 * steps)) - 1
        grid = torch.cat([torch.ones(1), self.alpha_bar[times]])
        self.register_buffer("alpha_bars", grid, persistent=False)
        self.register_buffer("times", torch.cat([times.new_tensor([-1]), times]), persistent=False)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        *beside, latents, tokens = batch
        noise, drawn = self.noise(latents, batch_idx)
        start = 2 * (drawn * self.steps // len(self.alpha_bar) + 1)
        text = self.text_encoder(tokens)[0]
        condition = self._condition(len(latents), batch_idx)
        a, b, c = (self.alpha_bars[start - i] for i in range(3))
        noisy = diffuse(latents, noise, a)
        with torch.no_grad():
            halfway = self._leap(noisy, start, b, beside, text, condition)
            landed = self._leap(halfway, start - 1, c, beside, text, condition)
            target = leap_target(noisy, landed, a, c)
        if self.truth:
            place = draw_scales(self, (0.0, 1.0), self.seed + 4, len(latents), batch_idx)
            known = (place < self.truth)[:, None, None, None]
            target = torch.where(known, latents, target[0]), torch.where(known, noise, target[1])
        output = self._predict(self._forward[0], noisy, start, beside, text, condition)
        kind = self.scheduler.config.prediction_type
        loss = denoising_loss(output, *target, a, kind, self.gamma)
        self.log("train/loss", loss)
        return loss

    def _leap(
        self, noisy: Tensor, place: Tensor, later: Tensor, beside: Any, text: Tensor, condition: Any
    ) -> Tensor:
        """Where the teacher's DDIM step from this place of its grid to ᾱ `later` leads."""
        out = self._predict(self._teacher[0], noisy, place, beside, text, condition).float()
        kind = self.scheduler.config.prediction_type
        return diffuse(*parts_of(out, noisy, self.alpha_bars[place], kind), later)

    def _predict(
        self, net: Any, noisy: Tensor, place: Tensor, beside: Any, text: Tensor, condition: Any
    ) -> Tensor:
        seen = torch.cat([noisy, *beside], 1).contiguous(memory_format=torch.channels_last)
        out: Tensor = net(
            seen, self.times[place], text, timestep_cond=condition, return_dict=False
        )[0]
        return out

    def _condition(self, count: int, batch_idx: int) -> Tensor | None:
        if self.width is None:
            return None
        scale, image_scale = (
            draw_scales(self, ends, self.seed + 1 + place, count, batch_idx)
            for place, ends in enumerate(self.scales)
        )
        if self.edits:
            told = draw_told(self, self.untold, count, batch_idx)
            return edit_guidance_embedding(scale, image_scale, self.width) * told[:, None]
        return guidance_embedding(scale, self.width)

    def pipeline(self, data: Any) -> DiffusionPipeline:
        """As of `DenoisingModule`, with the sampler that the student was trained for."""
        pipe: Any = super().pipeline(data)
        pipe.scheduler = DDIMScheduler.from_config(
            self.scheduler.config,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
            steps_offset=0,
        )
        return pipe
