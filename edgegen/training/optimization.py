"""Optimiser and learning-rate schedule from plain numbers and a name; the noise of a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning
import torch
from diffusers.optimization import get_scheduler
from torch import nn


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    schedule: str,
    warmup: int,
    steps: int,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
) -> dict[str, Any]:
    """What `configure_optimizers` returns: AdamW, decay on matrices and kernels only.

    `schedule` is a name that `diffusers.optimization.get_scheduler` knows, such as ``cosine`` or
    ``constant_with_warmup``; `warmup` and `steps` count optimisation steps.
    """
    parameters = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
    scheduler = get_scheduler(
        schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def step_generator(module: lightning.LightningModule, seed: int, batch_idx: int) -> torch.Generator:
    """A generator on the module's device, seeded by (seed, step, rank, accumulated batch) alone.

    So a resumed run draws what it would have drawn. A step may have 1024 batches over all ranks.
    """
    trainer = module.trainer
    accumulated = batch_idx % trainer.accumulate_grad_batches
    slot = accumulated * trainer.world_size + trainer.global_rank
    # PyTorch seeds its CPU generator with the lowest 32 bits: spread the seeds over those.
    number = seed * 0x9E3779B9 + trainer.global_step * 1024 + slot
    return torch.Generator(module.device).manual_seed(number % 2**32)
