"""Training of Clockwork's adaptor (arXiv 2312.08128, algorithm 1) on a frozen, shared teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from ..losses.features import feature_loss
from ..reuse import ResNetAdaptor, Stage, load_adaptor, make_adaptor, save_adaptor
from ..reuse.unrolling import (
    Prediction,
    on_features,
    planned_passes,
    trajectory_features,
    unrolled,
)
from ..sampling.trajectories import TrajectoryStore
from .footprint import peak_memory
from .optimization import exact, optimizer_and_schedule
from .teacher import Teacher

FILE = "adaptor.safetensors"


class ClockworkModule(lightning.LightningModule):
    """Predicts r_out where the clock says reuse, on trajectories from noise and prompts.

    The adaptor watches the teacher's own UNet, of which there is no copy and no gradient. Batches
    are those of `data.prompts.PromptData`. Logged: `train/loss`, and `train/loss_relative`, the
    loss over that of the identity r̂_out(t) = r_out(t+1) on the same trajectories;
    `train/params_trained`, and that as a share of the UNet's, `train/params_share`; and
    `train/bytes_peak`, the memory held at the most, see `footprint.peak_memory`.

    Args:
        teacher: the model, and how it will be sampled from: steps, scheduler, guidance.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        cut, clock: as they will be used, see `reuse.reuse`; no clock by drift.
        adaptor: keyword arguments of `reuse.make_adaptor`: `kind`, `inputs`, `width`.
        weights: file of an adaptor to begin with; `adaptor` must describe the same one.
        trajectories: `unrolled`: the student's own, on which its errors add up; `plain`: those of
            the teacher.
        store: folder that keeps the features of plain trajectories, so that each is made once;
            needs data of a fixed number of `distinct` samples. None makes them anew every time.

    Raises:
        ValueError: settings that do not fit each other.
    """

    def __init__(
        self,
        teacher: Teacher,
        optimizer: dict[str, Any],
        cut: Stage,
        clock: Any = 2,
        adaptor: dict[str, Any] | None = None,
        weights: str | None = None,
        trajectories: str = "unrolled",
        store: str | None = None,
    ) -> None:
        super().__init__()
        if trajectories not in ("unrolled", "plain"):
            raise ValueError(f"trajectories={trajectories}: allowed are unrolled, plain")
        if store is not None and trajectories != "plain":
            raise ValueError(
                "store: keeps plain trajectories; unrolled ones change with the adaptor, so give "
                "store=null"
            )
        self._teacher = (teacher,)  # in a tuple: no submodule, in no checkpoint
        self.optimizer_options, self.cut, self.clock = optimizer, cut, clock
        self.passes = planned_passes(clock, teacher.evaluations)
        self.student = trajectories == "unrolled"
        self.store_folder = store
        self._store: TrajectoryStore | None = None
        self.adaptor = make_adaptor(teacher.unet, cut, **(adaptor or {}))
        if weights is not None:
            asked, self.adaptor = self.adaptor, load_adaptor(weights, teacher.unet, cut)
            if adaptor is not None:
                _check_alike(asked, self.adaptor, weights)
        self.adaptor.float().train().requires_grad_(True)
        self.adaptor.trained = {
            "steps": teacher.evaluations,
            "full": [i for i, full in enumerate(self.passes, start=1) if full],
            "scheduler": type(teacher.scheduler).__name__,
            "guidance": teacher.guidance,
        }

    @property
    def teacher(self) -> Teacher:
        return self._teacher[0]

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        peak_memory(self.device, restart=True)
        self.open_stores()

    def open_stores(self) -> None:
        self._store = self.open_store({"cut": str(self.cut)})

    def open_store(
        self, about: Mapping[str, Any], steps: int | None = None
    ) -> TrajectoryStore | None:
        """What keeps what is computed of a sample: of the teacher's run, and of `about`.

        None where nothing is kept. `steps` of that run where they are others than the teacher's.
        """
        if self.store_folder is None:
            return None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.distinct is None:
            raise ValueError("store: needs a number of different samples: give data.distinct=N")
        teacher = self.teacher.about() | ({} if steps is None else {"steps": steps})
        settings = {
            "teacher": teacher,
            "prompts": data.digest,
            "precision": str(self.trainer.precision),
            **about,
        }
        return TrajectoryStore(self.store_folder, settings, data.distinct)

    def predictions(self, batch: dict[str, Any]) -> Iterator[Prediction]:
        """What the adaptor says of a batch, at each reuse step or at all at once."""
        teacher, seeds = self.teacher, batch["seed"].tolist()
        if self._store is None:
            run = teacher.run(batch["prompt"], seeds)
            yield from unrolled(teacher.unet, self.cut, self._adapt, self.passes, run, self.student)
        else:
            yield on_features(self._adapt, self._features(self._store, batch), self.passes)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses, identity = [], []
        for found in self.predictions(batch):
            losses.append(feature_loss(found.value, found.target))
            identity.append(feature_loss(found.previous, found.target))
        loss, plain = torch.stack(losses).mean(), torch.stack(identity).mean()
        size = len(batch["prompt"])
        self.log("train/loss", loss, batch_size=size)
        self.log("train/loss_relative", loss.detach() / plain, batch_size=size)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        trained = sum(p.numel() for p in self.adaptor.parameters())
        of = sum(p.numel() for p in self.teacher.unet.parameters())
        found = {"params_trained": trained, "params_share": trained / of}
        found["bytes_peak"] = peak_memory(self.device)
        values = {f"train/{k}": exact(v, self.device) for k, v in found.items()}
        self.log_dict(values, batch_size=len(batch["prompt"]))

    def export(self, folder: Path, data: Any) -> None:
        """Write `adaptor.safetensors`, which `method.clockwork.predictor` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        save_adaptor(self.adaptor, folder / FILE, self.teacher.unet, self.cut)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.adaptor.parameters(), **self.optimizer_options)

    def _adapt(self, *features: Any) -> Tensor:
        """The adaptor in its own precision, whatever the teacher's is."""
        dtype = self.adaptor.conv_in.weight.dtype
        return self.adaptor(*(_cast(each, dtype) for each in features))

    def _features(self, store: TrajectoryStore, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`trajectory_features` of the batch, (branch · sample) first; made where not yet there."""

        def make(places: list[int]) -> dict[str, Tensor]:
            run = self.teacher.run(
                [batch["prompt"][place] for place in places],
                [int(batch["seed"][place]) for place in places],
            )
            made = trajectory_features(self.teacher.unet, self.cut, run)
            return {
                name: value.unflatten(0, (-1, len(places))).transpose(0, 1)
                for name, value in made.items()
            }

        kept = store.get_or_make(batch["row"].tolist(), make)
        return {
            name: value.to(self.device).transpose(0, 1).flatten(0, 1)
            for name, value in kept.items()
        }


def _check_alike(asked: ResNetAdaptor, loaded: ResNetAdaptor, weights: str) -> None:
    for name, wanted, found in (
        ("width", asked.settings["width"], loaded.settings["width"]),
        ("inputs", sorted(asked.inputs), sorted(loaded.inputs)),
    ):
        if wanted != found:
            raise ValueError(
                f"module.weights={weights}: its {name} is {found}, and module.adaptor asks for "
                f"{wanted}: give module.adaptor as it was"
            )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        value = value[0]
    return value if value is None else value.to(dtype)
