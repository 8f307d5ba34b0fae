"""Checkpoints of a training: when they are written, and how."""

from __future__ import annotations

import io
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from ..runs.atomic import write_atomic
from .optimization import ends_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, which it then replaces in one step.

    Lightning's own way through the system's temporary folder is a plain copy where that folder is
    on another disk, and a run killed in the middle of it would leave half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(path, buffer.getvalue())


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint as `last.ckpt`, written every so many steps and at the end.

    A training whose time is over finishes the step it is in: a checkpoint holds no gradients, so
    what was accumulated would be lost.

    Args:
        folder: where it is written.
        every: optimisation steps between two of them.
    """

    def __init__(self, folder: Any, every: int) -> None:
        super().__init__(
            folder,
            save_last=True,
            save_top_k=0,
            enable_version_counter=False,  # or a run that was moved goes on in last-v1.ckpt
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not ends_step(trainer, batch_idx):
            trainer.should_stop = False  # the timer says so again after the next batch
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if ends and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
