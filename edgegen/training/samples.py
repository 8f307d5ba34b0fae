"""Pictures and curves while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers.utils import make_image_grid


class SampleGrid(lightning.Callback):
    """Saves a grid of pictures of fixed prompts every so many steps, always from the same noise.

    Args:
        folder: where `step_000500.png` and so on are written.
        prompts: one picture each, in rows of `columns`.
        every: optimisation steps between grids.
    """

    def __init__(
        self,
        folder: str,
        prompts: list[str],
        every: int,
        columns: int = 6,
        steps: int = 20,
        guidance: float = 3.0,
    ) -> None:
        self.folder, self.prompts, self.every = Path(folder), prompts, every
        self.columns, self.steps, self.guidance = columns, steps, guidance

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every or not trainer.is_global_zero:
            return
        pipe = module.pipeline(trainer.datamodule)  # type: ignore[attr-defined]
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(i) for i in range(len(self.prompts))]
        with torch.autocast(module.device.type, enabled=False):
            images = pipe(
                self.prompts,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=generators,
            ).images
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = len(images) // self.columns
        grid = make_image_grid(images[: rows * self.columns], rows=rows, cols=self.columns)
        grid.save(self.folder / f"step_{step:06d}.png")
