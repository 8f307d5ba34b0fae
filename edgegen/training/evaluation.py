"""Sampling as a test loop: one process or several, stopped and started again, the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import DiffusionPipeline
from torch import distributed, nn
from torch.utils.data import DataLoader

from ..api import Method, apply
from ..data.asks import AskBatches
from ..media.pictures import PictureFiles
from ..metrics.quality.kept import KeptFeatures
from ..runs.atomic import write_atomic
from ..runs.generation import GenerationCost, read_cost

Draw = Callable[[Path, Sequence[int], GenerationCost], Sequence[Path]]
"""(folder, places, cost): make the pictures of the asks at `places` that are not in `folder` yet,
inside `cost.batch`; their files, in the same order. A place may stand there more than once."""
Prepare = Callable[[Path, Sequence[int]], None]
"""(folder, places): what needs the plain model, for the asks at `places`."""


class EvaluationModule(lightning.LightningModule):
    """Makes pictures and their features as a Lightning test loop.

    All results are files, made atomically: pictures by `draw`, features under
    `folder/features` (see `KeptFeatures`), the cost in `folder/cost.json`. A batch whose files are
    there costs no network a call, so a killed loop goes on where it was, and a new backbone needs
    no new pictures. Batches are of one shape and go to processes whole, so neither the number of
    processes nor a stop changes a bit. Run it by `run_test`.

    Args:
        pipe: the model, without methods; it is moved to the trainer's device.
        methods: applied while the pictures are made, as by `api.apply`.
        batches: the asks.
        folder: of the first process; the others take its folder.
        draw: see `Draw`.
        settings: that the cost is kept for.
        backbones: whose features are kept.
        prepare: see `Prepare`; called once in each process before the methods are applied, with
            the asks of that process.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        methods: Mapping[str, Method],
        batches: AskBatches,
        folder: Path,
        draw: Draw,
        settings: Mapping[str, Any],
        *,
        backbones: Sequence[nn.Module] = (),
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__()
        self.pipe, self.methods, self.batches = pipe, methods, batches
        self.folder, self.draw, self.settings = Path(folder), draw, dict(settings)
        self.prepare = prepare
        self.judges = nn.ModuleList(backbones)
        self.stack = ExitStack()

    def setup(self, stage: str) -> None:
        self.folder = Path(self.trainer.strategy.broadcast(str(self.folder)))

    def test_dataloader(self) -> DataLoader:
        share = self.batches.share(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self.batches, batch_size=None, sampler=share, collate_fn=list)

    def on_test_start(self) -> None:
        self.pipe.to(self.device)
        share = self.batches.share(self.trainer.global_rank, self.trainer.world_size)
        if self.prepare is not None and len(share):
            places = dict.fromkeys(place for number in share for place in self.batches[number])
            self.prepare(self.folder, list(places))
        self.kept = [
            KeptFeatures(each, self.folder / "features", self.batches.size) for each in self.judges
        ]
        with torch.inference_mode(False):  # so that methods can be undone outside of it
            self.stack.enter_context(apply(self.pipe, self.methods))
        self.cost = self.stack.enter_context(GenerationCost(self.pipe))

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        files = self.draw(self.folder / "images", batch, self.cost)
        if self.trainer.is_global_zero:
            self._keep_cost()
        pictures = PictureFiles(list(dict.fromkeys(files)))
        for kept in self.kept:
            kept(pictures)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, loader: int) -> Any:
        return batch

    def detach(self) -> None:
        """Give the pipeline back as it was."""
        self.stack.close()

    def _keep_cost(self) -> None:
        """Of the stretch that made most pictures, where the loop was stopped."""
        path, found = self.folder / "cost.json", self.cost.result()
        kept = read_cost(path, self.settings)
        if found is not None and (kept is None or found["images"] >= kept["images"]):
            content = {"settings": self.settings, "cost": _of_a_batch(found)}
            write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _of_a_batch(cost: dict[str, Any]) -> dict[str, Any]:
    """With the calls of one batch: those of all depend on where a run was stopped."""
    metrics = dict(cost["metrics"])
    calls = next((part["calls"] for part in cost["parts"] if part["name"] == "unet"), 0)
    if calls and "cost/unet_calls" in metrics:
        batches = metrics["cost/unet_calls"] / calls
        for name in ("cost/unet_calls", "cost/uncounted_ops"):
            metrics[name] = round(metrics[name] / batches, 2)
    return {**cost, "metrics": metrics}


def run_test(trainer: lightning.Trainer, module: EvaluationModule) -> bool:
    """Run the test loop to its end; whether this is the first process, which goes on alone.

    Process groups are closed, so that what the first process does next waits for nobody.
    """
    try:
        trainer.test(module, verbose=False)
    finally:
        module.detach()
    first = trainer.is_global_zero
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    return first
