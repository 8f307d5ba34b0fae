"""Training of an instruction editor: InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800)."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import Tensor

from .denoising import DenoisingModule


class EditingModule(DenoisingModule):
    """Denoises the target's latents, with the source's latents beside the noisy ones.

    Batches are (source, target, tokens) as `data.edit_latents.EditData` gives them; the data drops
    instruction and source for the two guidance scales. The UNet takes twice the latent channels
    (`pipelines.variants.editor_unet`). Arguments as of `DenoisingModule`.
    """

    kind = StableDiffusionInstructPix2PixPipeline

    def __init__(self, unet: Any, *args: Any, **options: Any) -> None:
        if unet.config.in_channels != 2 * unet.config.out_channels:
            raise ValueError(
                f"module.unet maps {unet.config.in_channels} to {unet.config.out_channels} "
                "channels: an editor's must take twice the latent channels"
            )
        super().__init__(unet, *args, **options)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        source, target, tokens = batch
        return self.loss_of(target, tokens, batch_idx, source)
