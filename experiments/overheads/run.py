"""What Lightning adds to a training step, and CostTracker to a picture.

    python experiments/overheads/run.py

Against the same work without them, in turns in one process; the processor must have nothing else
to do.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import edgegen
from edgegen.cost.latency import interleaved, paired_ratio, series
from edgegen.losses.diffusion import denoising_loss, diffuse
from edgegen.runs.experiment import table_code
from edgegen.runs.finished import from_csv, to_csv
from edgegen.training.checkpoints import LastCheckpoint
from edgegen.training.denoising import DenoisingModule
from edgegen.training.optimization import optimizer_and_schedule

HERE = Path(__file__).parent
BATCH, STEPS, WARMUP = 64, 4, 3
TRAININGS, PICTURES = 6, 20
OPTIMIZER = {"lr": 1e-4, "schedule": "constant_with_warmup", "warmup": 10, "steps": 1000}


def main() -> None:
    """Measure both and write `results.csv` and `table.md` beside this file."""
    measured = [training, *(partial(picture, n, first) for n in (8, 25) for first in (True, False))]
    rows: list[dict[str, Any]] = []
    for measure in measured:
        rows.append({**measure(), "threads": torch.get_num_threads()})
        text = to_csv(rows)
        (HERE / "results.csv").write_text(text, encoding="utf-8")
        (HERE / "table.md").write_text(table_code(HERE).table(from_csv(text)), encoding="utf-8")
    print((HERE / "table.md").read_text(encoding="utf-8"))


def row(what: str, base: str, values: np.ndarray, bases: np.ndarray) -> dict[str, Any]:
    """A measured overhead: seconds with and without, and the ratio of the two."""
    ratio = paired_ratio(values, bases)
    return {
        "what": what,
        "against": base,
        "seconds": float(np.median(values)),
        "seconds_without": float(np.median(bases)),
        "ratio": ratio.value,
        "ratio_lo": ratio.low,
        "ratio_hi": ratio.high,
        "rounds": ratio.n,
    }


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The same few batches again and again; notes when each is asked for.

    Lightning asks for a batch a step ahead, so its last STEPS intervals begin a step earlier.
    """

    def __init__(self, pipe: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        config = pipe.unet.config
        shape = (BATCH, config.in_channels, config.sample_size, config.sample_size)
        words = pipe.tokenizer(
            ["fox, noto style"] * BATCH, padding="max_length", return_tensors="pt"
        ).input_ids
        self.batches = [(torch.randn(shape, generator=generator), words) for _ in range(4)]
        self.times: list[float] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(10**9):
            self.times.append(time.perf_counter())
            yield self.batches[number % len(self.batches)]

    def seconds(self) -> float:
        """Of a step: the mean over the last STEPS."""
        return (self.times[-1] - self.times[-1 - STEPS]) / STEPS


def training() -> dict[str, Any]:
    """Training steps of the embedded UNet by Lightning, as `scripts/train.py` has them."""
    pipe = edgegen.load("emoji")
    took: dict[str, list[float]] = {"lightning": [], "loop": []}
    rng = np.random.default_rng(0)
    for _ in range(TRAININGS):
        weights = {}
        for name in rng.permutation(["lightning", "loop"]):
            batches = Batches(pipe)
            weights[name] = {"lightning": by_lightning, "loop": by_hand}[name](pipe, batches)
            took[name].append(batches.seconds())
        for key, value in weights["loop"].items():
            if not torch.equal(weights["lightning"][key], value):
                raise SystemExit(f"the two trainings are not the same: {key}")
    what = f"a training step of the UNet by Lightning, batch {BATCH}"
    return row(what, "a loop by hand", np.array(took["lightning"]), np.array(took["loop"]))


def module_of(pipe: Any) -> DenoisingModule:
    """A training of the pipeline's UNet at its first step."""
    return DenoisingModule(
        copy.deepcopy(pipe.unet).train(),
        pipe.text_encoder,
        DDPMScheduler.from_config(pipe.scheduler.config),
        OPTIMIZER,
        gamma=None,
        eager_attention=True,
    )


def by_lightning(pipe: Any, batches: Batches) -> dict[str, Tensor]:
    """WARMUP + STEPS steps; returns the weights."""
    module = module_of(pipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            precision="32-true",
            max_steps=WARMUP + STEPS,
            gradient_clip_val=1.0,
            callbacks=[LastCheckpoint(folder, 10**6)],
            logger=lightning.pytorch.loggers.CSVLogger(folder),
            log_every_n_steps=25,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
    return module.unet.state_dict()


def by_hand(pipe: Any, batches: Batches) -> dict[str, Tensor]:
    """The same steps without Lightning; returns the weights."""
    ours = module_of(pipe)
    unet, ema = ours.unet, EMAModel(ours.unet.parameters(), decay=0.9995, foreach=True)
    made = optimizer_and_schedule(unet.parameters(), **OPTIMIZER)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    stream = iter(batches)
    for step in range(WARMUP + STEPS):
        latents, tokens = next(stream)
        # The module's own noise, so that the two can be compared to the bit.
        place = {"accumulate_grad_batches": 1, "world_size": 1, "global_rank": 0}
        ours._trainer = SimpleNamespace(global_step=step, **place)  # type: ignore[assignment]
        noise, timesteps = ours.noise(latents, step)
        with torch.no_grad():
            text = ours.text_encoder(tokens)[0]
        alpha_bar = ours.alpha_bar[timesteps]
        seen = diffuse(latents, noise, alpha_bar).contiguous(memory_format=torch.channels_last)
        output = unet(seen, timesteps, text, return_dict=False)[0]
        loss = denoising_loss(output, latents, noise, alpha_bar, "v_prediction", None)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(unet.parameters())
    batches.times.append(time.perf_counter())
    return unet.state_dict()


def picture(steps: int, first: bool) -> dict[str, Any]:
    """A picture of `steps` steps under a CostTracker: the first of a model, or a later one."""
    kept: dict[str, Any] = {}

    def draw() -> None:
        kept["pipe"]("fox, noto style", num_inference_steps=steps, output_type="np")

    @contextmanager
    def fresh(tracked: bool) -> Iterator[None]:
        kept["tracked"] = tracked
        if first or "pipe" not in kept:  # counts of a network are kept as long as it is
            kept["pipe"] = edgegen.load("emoji")
            kept["pipe"].set_progress_bar_config(disable=True)
            draw()
        yield

    def work(_: int) -> None:
        with edgegen.CostTracker(kept["pipe"]) if kept["tracked"] else nullcontext():
            draw()

    methods = {"with": lambda: fresh(True), "without": lambda: fresh(False)}
    readings = interleaved(methods, work, rounds=PICTURES, warmup=2, description=f"{steps} steps")
    which = "the first" if first else "a later"
    what = f"a picture of {steps} steps under {which} CostTracker of the model"
    return row(what, "without it", series(readings, "with"), series(readings, "without"))


if __name__ == "__main__":
    main()
