"""A light autoencoder that stands in for a pipeline's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from ..losses.reconstruction import psnr, reconstruction_loss
from ..pipelines.layout import channels_last
from ..pipelines.save import replaced_folder
from .denoising import frozen
from .optimization import optimizer_and_schedule


class LightAutoencoderModule(lightning.LightningModule):
    """Distils an AutoencoderKL into an AutoencoderTiny with the same latents, as TAESD is.

    The encoder learns the teacher's latents (the mode, scaled), the decoder the pictures that they
    come from. `edgegen.load(…, vae=FOLDER)` puts the result into a pipeline. Batches are pictures
    (B, 3, H, W) in −1 to 1. Validation logs PSNR in dB by validation set, of both halves together
    and of the decoder on the teacher's latents.

    Args:
        model: what is trained.
        teacher: frozen; in no checkpoint.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        latents: weight of the latents' mean squared error, in units of the pixel loss.

    Raises ValueError where the two have other latents.
    """

    def __init__(
        self,
        model: AutoencoderTiny,
        teacher: AutoencoderKL,
        optimizer: dict[str, Any],
        latents: float = 1.0,
    ) -> None:
        super().__init__()
        own, theirs = (
            (net.config["latent_channels"], len(net.config["block_out_channels"]))
            for net in (model, teacher)
        )
        if own != theirs:
            raise ValueError(
                f"module.model: has {own[0]} latent channels and {own[1]} levels, the teacher "
                f"{theirs[0]} and {theirs[1]}: must be the same"
            )
        self.model = channels_last(model)
        self._teacher: tuple[Any] = (frozen(teacher),)
        self.optimizer_options, self.weight = optimizer, latents

    def on_fit_start(self) -> None:
        self._teacher[0].to(self.device)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch = batch.contiguous(memory_format=torch.channels_last)
        wanted = self._latents(batch)
        found = self.model.encode(batch).latents
        decoded = self.model.decode(wanted).sample
        pixels = reconstruction_loss(decoded.float(), batch)
        latents = functional.mse_loss(found.float(), wanted.float())
        self.log_dict({"train/pixels": pixels, "train/latents": latents})
        return pixels + self.weight * latents

    @torch.no_grad()
    def _latents(self, pictures: Tensor) -> Tensor:
        teacher = self._teacher[0]
        mode: Tensor = teacher.encode(pictures).latent_dist.mode()
        return mode * teacher.config.scaling_factor

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = list(self.trainer.datamodule.validation_sets)[dataloader_idx]  # type: ignore[attr-defined]
        for what, latents in (
            ("psnr", self.model.encode(batch).latents),
            ("psnr_decoder", self._latents(batch)),
        ):
            decoded = self.model.decode(latents).sample.clamp(-1, 1)
            self.log(
                f"val/{what}_{name}",
                psnr(decoded, batch).mean(),
                batch_size=len(batch),
                add_dataloader_idx=False,
            )

    def export(self, folder: Path, data: Any) -> None:
        """Save as diffusers does."""
        model: Any = copy.deepcopy(self.model).cpu().float().eval()
        with replaced_folder(folder) as new:
            model.to(memory_format=torch.contiguous_format).save_pretrained(new)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.model.parameters(), **self.optimizer_options)
