"""Optimiser and learning-rate schedule from plain numbers and a name; the noise of a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from transformers import get_scheduler


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with `muon=True`: there the momentum is orthogonalised.

    The update of a matrix is the matrix of ±1 singular values nearest to its Nesterov momentum,
    found by five Newton–Schulz iterations in bfloat16, scaled by 0.2 √max(rows, columns) so that
    learning rate and weight decay mean what they mean to AdamW (Jordan et al. 2024; Liu et al.
    2025, arXiv 2502.16982, equation 4). A kernel (O, I, h, w) is the matrix (O, I·h·w), which
    `torch.optim.Muon` does not take.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, **rest: Any):
        super().__init__(params, lr=lr, **rest)
        for group in self.param_groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()  # clears the gradients of all groups first
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._orthogonal_step(group)
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = torch.tensor(0.0)  # which AdamW looks for when a state is loaded
            buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
            update = parameter.grad.add(buffer, alpha=group["momentum"]).flatten(1)
            alike.setdefault((update.shape[0], update.shape[1]), []).append((parameter, update))
        for shape, pairs in alike.items():  # one batch of products for all matrices of a shape
            updates = orthogonalized(torch.stack([update for _, update in pairs]))
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = 0.2 * max(shape) ** 0.5 * group["lr"]
                parameter.sub_(update.view_as(parameter).to(parameter.dtype), alpha=step)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether a device has no bfloat16 products of its own: a CPU before AVX-512."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (N, R, C) of the same singular vectors with all singular values near 1.

    In bfloat16; in float32 on CPUs without bfloat16 products, where it is fifteen times as fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    dtype = torch.float32 if emulates_bfloat16(matrices.device) else torch.bfloat16
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def optimizer_and_schedule(
    parameters: Iterable[nn.Parameter],
    lr: float,
    schedule: str,
    warmup: int,
    steps: int,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    muon: bool = False,
    schedule_options: dict[str, Any] | None = None,
    separate: Iterable[nn.Parameter] = (),
    separate_lr: float = 0.0,
) -> dict[str, Any]:
    """What `configure_optimizers` returns: AdamW, decay on matrices and kernels only.

    `schedule` is a name that `transformers.get_scheduler` knows, such as ``cosine`` or
    ``warmup_stable_decay``, and `schedule_options` what that schedule alone takes (there
    `num_decay_steps`); `warmup` and `steps` count optimisation steps. With `muon`, matrices and
    kernels between layers of 16 channels or more take `Muon` steps. Parameters in `separate` take
    AdamW steps with a learning rate of their own, and none decays.
    """
    parameters = [p for p in parameters if p.requires_grad]
    hidden = [p for p in parameters if muon and p.ndim > 1 and min(p.shape[:2]) >= 16]
    taken = set(map(id, hidden))
    rest = [p for p in parameters if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if hidden:
        groups.append({"params": hidden, "weight_decay": weight_decay, "muon": True})
    if own := list(separate):
        groups.append({"params": own, "weight_decay": 0.0, "lr": separate_lr})
    kind = Muon if hidden else torch.optim.AdamW
    optimizer = kind(groups, lr=lr, betas=betas, foreach=True)
    return with_schedule(optimizer, schedule, warmup, steps, schedule_options)


def with_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: str,
    warmup: int,
    steps: int,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `configure_optimizers` returns for an optimiser; see `optimizer_and_schedule`."""
    scheduler = get_scheduler(
        schedule,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(options or {}),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last of those whose gradients one optimisation step adds up."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


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


def exact(number: float, device: torch.device) -> torch.Tensor:
    """For a log: a count as float64, where float32 would round it; not on mps, which has none."""
    return torch.tensor(number, dtype=torch.float32 if device.type == "mps" else torch.float64)
