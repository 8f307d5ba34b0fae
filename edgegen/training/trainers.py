"""Lightning's trainer in the precision that a machine computes."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from .optimization import emulates_bfloat16


def make_trainer(
    precision: str = "auto", accelerator: str = "auto", **options: Any
) -> lightning.Trainer:
    """A `lightning.Trainer`.

    Args:
        precision: as Lightning has it; or `auto`: `bf16-mixed`, but `32-true` on CPUs that only
            emulate products in bfloat16, where these take some fifteen times as long.
        accelerator, options: of `lightning.Trainer`.
    """
    if precision == "auto":
        on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
        emulated = on_cpu and emulates_bfloat16(torch.device("cpu"))
        precision = "32-true" if emulated else "bf16-mixed"
    return lightning.Trainer(precision=precision, accelerator=accelerator, **options)  # type: ignore[arg-type]
