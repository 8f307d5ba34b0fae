"""Training of a small AutoencoderKL."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..losses.reconstruction import kl_to_standard_normal, psnr, reconstruction_loss
from ..pipelines.latents import fold_latent_moments, latent_moments
from ..pipelines.layout import channels_last
from ..pipelines.parts import autoencoder
from ..pipelines.save import replaced_folder
from .optimization import optimizer_and_schedule, step_generator


class AutoencoderModule(lightning.LightningModule):
    """Reconstruction with a light KL term; validation logs PSNR in dB by validation set.

    Args:
        model: the autoencoder.
        kl: weight of the KL term, in units of the pixel loss.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        weights: folder of a trained autoencoder of the same architecture to begin with.
        decoder_only: leave the encoder, and with it every latent, as it is.
        seed: of the latents' noise.
    """

    def __init__(
        self,
        model: AutoencoderKL,
        optimizer: dict[str, Any],
        kl: float = 1e-4,
        weights: str | None = None,
        decoder_only: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if weights is not None:
            model.load_state_dict(autoencoder(weights).state_dict())
        self.decoder_only = decoder_only
        if decoder_only:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
        self.model = channels_last(model)
        self.optimizer_options, self.kl, self.seed = optimizer, kl, seed

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch = batch.contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(batch).latent_dist
        generator = step_generator(self, self.seed, batch_idx)
        decoded = self.model.decode(posterior.sample(generator)).sample
        pixels = reconstruction_loss(decoded.float(), batch)
        kl = kl_to_standard_normal(posterior.mean.float(), posterior.logvar.float())
        self.log_dict({"train/pixels": pixels, "train/kl": kl})
        return pixels + self.kl * kl

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        decoded = self.model.decode(self.model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        name = list(self.trainer.datamodule.validation_sets)[dataloader_idx]  # type: ignore[attr-defined]
        self.log(
            f"val/psnr_{name}",
            psnr(decoded, batch).mean(),
            batch_size=len(batch),
            add_dataloader_idx=False,
        )

    @torch.no_grad()
    def export(self, folder: Path, data: Any, samples: int = 2048) -> None:
        """Centre and scale the latents over the start of the training stream, and save."""
        model = copy.deepcopy(self.model).cpu().float().eval()
        if not self.decoder_only:
            data.setup()
            pictures = torch.stack([data.train_set[i] for i in range(samples)])
            fold_latent_moments(model, *latent_moments(model, pictures))
        with replaced_folder(folder) as new:
            model.save_pretrained(new)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.model.parameters(), **self.optimizer_options)
