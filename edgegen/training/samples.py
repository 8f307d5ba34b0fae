"""Pictures and curves while a model trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers.utils import make_image_grid
from PIL import Image

from ..runs.pictures import grid
from ..sampling.guidance import edit_guidance
from .optimization import ends_step


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

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every or not ends_step(trainer, batch_idx):
            return
        pipe = module.pipeline(trainer.datamodule)  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
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


class EditGrid(lightning.Callback):
    """Saves source, true target and edit of fixed held-out pairs every so many steps.

    Args:
        folder: where `step_000500.png` and so on are written.
        every: optimisation steps between grids.
        pairs: how many; the data module's `examples` gives them.
        columns: pairs a row, three pictures each.
    """

    def __init__(
        self,
        folder: str,
        every: int,
        pairs: int = 24,
        columns: int = 3,
        steps: int = 10,
        guidance: float = 3.0,
        image_guidance: float = 1.5,
    ) -> None:
        self.folder, self.every, self.pairs, self.columns = Path(folder), every, pairs, columns
        self.steps, self.guidance, self.image_guidance = steps, guidance, image_guidance
        self._examples: Any = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every or not ends_step(trainer, batch_idx):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pipe = module.pipeline(data)
        if not trainer.is_global_zero:
            return
        if self._examples is None:
            self._examples = data.examples(self.pairs)
        sources, texts, targets = zip(*self._examples, strict=True)
        images = [Image.fromarray(source) for source in sources]
        pipe.set_progress_bar_config(disable=True)
        scales = edit_guidance(pipe, self.guidance, self.image_guidance)
        with torch.autocast(module.device.type, enabled=False), scales as given:
            edits = pipe(
                list(texts),
                image=images,
                num_inference_steps=self.steps,
                **given,
                generator=[torch.Generator().manual_seed(i) for i in range(len(images))],
            ).images
        cells: list[tuple[Image.Image, str]] = []
        for image, text, target, edit in zip(images, texts, targets, edits, strict=True):
            cells += [(image, text), (Image.fromarray(target), "target"), (edit, "edit")]
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = grid(cells, 3 * self.columns, least=96)
        sheet.save(self.folder / f"step_{step:06d}.png")
