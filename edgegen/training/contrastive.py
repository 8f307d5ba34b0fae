"""Contrastive training of a small CLIPModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from ..losses.contrastive import clip_loss
from ..metrics.quality.retrieval import retrieval_accuracy
from ..pipelines.save import save_embedded_clip
from .optimization import optimizer_and_schedule


class ContrastiveModule(lightning.LightningModule):
    """CLIP from scratch; validation logs text-to-picture retrieval within each held-out split.

    Args:
        model: the CLIPModel; pictures enter in [-1, 1].
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
    """

    def __init__(self, model: CLIPModel, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.optimizer_options = model, optimizer
        self._embedded: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def embed(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Unit embeddings of pictures and captions, (B, D) each, float32."""
        pictures, tokens, _ = batch
        output = self.model(input_ids=tokens, pixel_values=pictures)
        return output.image_embeds.float(), output.text_embeds.float()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        # Temperatures below 1/100 are clipped (Radford et al. 2021, section 2.5).
        scale = self.model.logit_scale.clamp(max=4.6052)
        loss = clip_loss(*self.embed(batch), scale, batch[2])
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._embedded = {name: [] for name in self.trainer.datamodule.validation_sets}  # type: ignore[attr-defined]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        list(self._embedded.values())[dataloader_idx].append(self.embed(batch))

    def on_validation_epoch_end(self) -> None:
        for name, pairs in self._embedded.items():
            images, texts = (
                F.normalize(torch.cat(part), dim=-1) for part in zip(*pairs, strict=True)
            )
            for k in (1, 5):
                self.log(f"val/{name}_top{k}", retrieval_accuracy(texts, images, k))

    def export(self, folder: Path, data: Any) -> None:
        """Save the model, its tokenizer and its picture settings, float16."""
        size = self.model.config.vision_config.image_size
        settings = {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        save_embedded_clip(self.model, data.tokenizer, settings, folder)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.model.parameters(), **self.optimizer_options)
