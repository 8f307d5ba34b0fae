"""Quantization-aware training: LSQ, LR-QAT and learned scales alone, on any network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ..quantization import Call, Spec, parse_spec
from ..quantization.qat import Learning, fuse_, learn_
from .footprint import footprint, peak_memory
from .optimization import exact, step_generator, with_schedule


class Task(Protocol):
    """What a network is trained on while it is quantized.

    Attributes:
        part: the network's name in specs.
        metrics: name → metric of `predictions`, on what the data hold out.
    """

    part: str
    metrics: dict[str, Metric]

    def network(self) -> nn.Module:
        """The network in full precision, to be quantized."""

    def target(self, student: nn.Module) -> Any:
        """What holds the network under the name of its part."""

    def calls(self, spec: Spec) -> Iterator[Call]:
        """For calibration, where a spec needs it."""

    def start(self, module: lightning.LightningModule) -> None:
        """Called before the first step."""

    def losses(self, student: nn.Module, batch: Any, generator: torch.Generator) -> dict:
        """`loss`, and what else is logged."""

    def predictions(self, student: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """What `metrics` are updated with."""

    def save(self, student: nn.Module, folder: Path, data: Any) -> None:
        """Write the quantized network to a folder, with what belongs to it."""


class QuantizationModule(lightning.LightningModule):
    """Trains a quantized network and saves it as plain integers.

    Logged: `train/loss` and what else the task tells; `train/params_trained`; bytes of the tensors
    that are there after the first step: `train/bytes_weights` (of the network, trained or not),
    `train/bytes_gradients`, `train/bytes_optimizer`, `train/bytes_all`; and `train/bytes_peak`,
    what the process (on a GPU: torch) needed at the most since the start, activations, teacher and
    libraries included.

    Args:
        task: what it learns, and from whom.
        spec: how it is quantized: a mapping, a name or a file, see `quantization.parse_spec`.
        learning: keyword arguments of `quantization.qat.Learning`.
        optimizer: of Adam: `lr` of weights or low-rank matrices, `lr_scales`, `schedule`, `warmup`,
            `steps`, and `betas` if need be.
        seed: of what the task draws.

    Raises:
        ValueError: settings that do not fit each other or the network.
    """

    def __init__(
        self,
        task: Task,
        spec: Any,
        learning: dict[str, Any],
        optimizer: dict[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._task = (task,)  # in a tuple: no submodule, in no checkpoint
        self.spec, self.optimizer_options, self.seed = parse_spec(spec), optimizer, seed
        if self.spec.parts != (task.part,):
            raise ValueError(f"spec.parts={list(self.spec.parts)}: must be [{task.part}] here")
        self.student = task.network()
        target = task.target(self.student)
        self.learned = learn_(target, self.spec, Learning(**learning), task.calls(self.spec))
        self.metrics = nn.ModuleDict(task.metrics)
        self._footprint: dict[str, int] = {}

    @property
    def task(self) -> Task:
        return self._task[0]

    def on_fit_start(self) -> None:
        self.task.start(self)
        peak_memory(self.device, restart=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        generator = step_generator(self, self.seed, batch_idx)
        losses = self.task.losses(self.student, batch, generator)
        self.log_dict({f"train/{k}": v for k, v in losses.items()}, batch_size=self._size())
        return losses["loss"]

    def on_train_batch_end(self, *_: Any) -> None:
        if not self._footprint.get("bytes_optimizer"):
            self._footprint = footprint(self.student, self.trainer.optimizers)
        found = self._footprint | {"bytes_peak": peak_memory(self.device)}
        values = {f"train/{k}": exact(v, self.device) for k, v in found.items()}
        self.log_dict(values, batch_size=self._size())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            found = self.task.predictions(self.student, batch)
        for name, metric in self.metrics.items():
            metric.update(*found)  # type: ignore[operator]
            self.log(f"val/{name}", metric, on_epoch=True, batch_size=len(batch))  # type: ignore[arg-type]

    def _size(self) -> int:
        return self.trainer.datamodule.batch_size  # type: ignore[attr-defined]

    def quantized(self) -> nn.Module:
        """A copy of the network with plain integers in place of what is learned, on the CPU."""
        copied = copy.deepcopy(self.student).cpu().eval()
        fuse_(self.task.target(copied), self.spec)
        return copied

    def export(self, folder: Path, data: Any) -> None:
        """Save the quantized network and what belongs to it."""
        self.task.save(self.quantized(), folder, data)

    def configure_optimizers(self) -> Any:
        return _adam(self.learned.weights, self.learned.scales, **self.optimizer_options)


def _adam(
    weights: list[nn.Parameter],
    scales: list[nn.Parameter],
    lr: float,
    lr_scales: float,
    schedule: str,
    warmup: int,
    steps: int,
    betas: tuple[float, float] = (0.9, 0.999),
) -> dict[str, Any]:
    """Adam without weight decay, with another learning rate for scales (arXiv 2406.06385)."""
    groups = [{"params": weights, "lr": lr}, {"params": scales, "lr": lr_scales}]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(groups, betas=betas, foreach=True)
    return with_schedule(optimizer, schedule, warmup, steps)
