"""Methods on one model side by side: what they cost, and what they do to the pictures."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from ..api import Method, apply
from ..cost import CostTracker
from ..cost.energy import estimated_joules, rapl
from ..cost.latency import Meter, Reading, interleaved, paired_ratio, series, timing
from ..metrics.quality.bootstrap import paired_difference
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.samples import SampleMetric
from ..sampling.generate import sample
from .memory import generation, peak_memory
from .record import Run

PLAIN = "none"  # the row of the model without any method
TRUTH = "truth"  # what its pictures are compared with
Row = dict[str, float | None]
Rows = Mapping[str, Mapping[str, Method]]
"""Label → methods at work together, as `api.apply` takes them; `none` → {}."""

ENDS = re.compile(r"(_lo|_hi|_sd|_n)?$")
WORK = (
    "cost/tflops_all",
    "cost/tflops_conv_linear",
    "cost/total_tflops_all",
    "cost/total_tflops_conv_linear",
    "cost/tbops",
    "cost/gbytes",
    "cost/unet_calls",
    "cost/uncounted_ops",
)
_SPREAD = ("_lo", "_hi", "_sd")
_BATCH = 16  # pictures that a judge is handed at once
_LABEL = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


class Figures:
    """What is known of each method: label → metric's name → number, None for what is not known.

    Args:
        run: where each figure is kept, under its name with the label in it (see `labelled`).
        labels: of the rows, in order.
    """

    def __init__(self, run: Run, labels: Iterable[str]) -> None:
        self.rows: dict[str, Row] = {label: {} for label in labels}
        self._run = run

    def add(self, label: str, metrics: Mapping[str, Any]) -> None:
        """Keep numbers of one method; values as `Run.log` takes them."""
        self._run.log({labelled(name, label): value for name, value in metrics.items()})
        kept = self._run.metrics
        self.rows[label] |= {name: kept[labelled(name, label)] for name in metrics}

    def unknown(self, label: str, name: str, reason: str) -> None:
        """Keep that a figure could not be had, and why."""
        self._run.note(labelled(name, label), reason)
        self.rows[label][name] = None


def labelled(name: str, label: str) -> str:
    """`quality/ode_rmse_lo` of `deepcache` is `quality/ode_rmse_deepcache_lo`."""
    return ENDS.sub(lambda end: f"_{label}{end[1] or ''}", name, count=1)


def check_label(label: str) -> None:
    """Raise ValueError for what cannot be the name of a row, part of a metric's and a folder's."""
    if not _LABEL.fullmatch(label) or ENDS.search(f"_{label}")[0]:  # type: ignore[index]
        raise ValueError(
            f"{label!r} is no name for a row: allowed are lower-case letters, digits, _ and -, "
            "not ending in _lo, _hi, _sd or _n"
        )


class Task:
    """The making of one batch of pictures: what is counted, timed and measured.

    Args:
        pipe: a text-to-image pipeline.
        prompts, seeds: a seed (seed, index) a prompt, as `sampling.generate.sample` takes them.
        settings: further arguments of that.
        size: pictures a batch.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        seeds: Sequence[tuple[int, int]],
        settings: Mapping[str, Any],
        size: int,
    ) -> None:
        self.pipe, self.prompts, self.seeds = pipe, prompts, seeds
        self.settings, self.size = dict(settings), size

    def batch(self, number: int) -> tuple[list[str], list[tuple[int, int]]]:
        """Prompts and seeds of the batch `number`; after the last prompt comes the first again."""
        places = [(number * self.size + i) % len(self.prompts) for i in range(self.size)]
        return [self.prompts[i] for i in places], [self.seeds[i] for i in places]

    def __call__(self, number: int) -> None:
        sample(self.pipe, *self.batch(number), **self.settings)


def count(figures: Figures, rows: Rows, task: Task) -> None:
    """Work of one picture, in both conventions, and the energy that it is estimated to take."""
    for label, methods in rows.items():
        with apply(task.pipe, methods), CostTracker(task.pipe) as tracker:
            task(0)
        summary = tracker.summary(images=task.size)
        work = summary.metrics()
        figures.add(label, {name: work[name] for name in WORK})
        figures.add(label, {"cost/energy_estimated_j": estimated_joules(summary)})


def measure_time(
    figures: Figures, rows: Rows, task: Task, *, rounds: int, warmup: int, seed: int
) -> list[Reading]:
    """Time of one picture, its ratio to the plain model's in the same round, and energy.

    Energy is measured on processors that count it, see `Rapl`. Arguments as of `interleaved`,
    whose readings (of whole batches) are given back.
    """
    meters: dict[str, Meter] = {"seconds": partial(_clock, task.pipe.device)}
    if task.pipe.device.type == "cpu" and (counter := rapl()):
        meters["joules"] = counter
    readings = interleaved(
        {label: partial(apply, task.pipe, methods) for label, methods in rows.items()},
        task,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
        meters=meters,
        description="timing",
    )
    base = series(readings, PLAIN)
    for label in rows:
        seconds = series(readings, label)
        figures.add(label, timing(seconds / task.size).metrics("cost/seconds_per_image"))
        if label != PLAIN:
            _add_ratio(figures, label, seconds, base)
        if "joules" in meters:
            joules = timing(series(readings, label, "joules") / task.size)
            figures.add(label, {"cost/energy_measured_j": joules.median})
    return readings


def measure_memory(figures: Figures, rows: Rows, task: Task, load: Mapping[str, Any]) -> None:
    """Peak memory of one batch, each method in a process of its own.

    Args:
        load: arguments of `api.load` that give the task's pipeline.
    """
    for label, methods in tqdm(rows.items(), desc="memory", unit="process"):
        try:
            memory = peak_memory(
                generation,
                dict(load),
                dict(methods),
                *task.batch(0),
                task.settings,
                device=str(task.pipe.device),
                threads=torch.get_num_threads(),
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            figures.unknown(label, "cost/peak_memory_mb", f"the measuring failed: {reason}")
            continue
        figures.add(
            label,
            {
                "cost/peak_memory_mb": memory.peak / 1e6,
                "cost/peak_memory_rise_mb": memory.rise / 1e6,
            },
        )


def judge(
    figures: Figures,
    pictures: Mapping[str, np.ndarray],
    metric: SampleMetric,
    beside: np.ndarray | Sequence[str],
    *,
    versus: bool = False,
) -> None:
    """Score every method's pictures.

    Args:
        pictures: label → (N, H, W, 3) uint8.
        metric: empty; it is so again afterwards.
        beside: the second argument of its `update`: N captions, or pictures (N, H, W, 3) uint8.
        versus: also give the mean difference to the plain model, with its paired interval.
    """
    base: Mapping[str, np.ndarray] = {}
    for label in [PLAIN, *(label for label in pictures if label != PLAIN)]:
        shown = pictures[label]
        for start in range(0, len(shown), _BATCH):
            part = slice(start, start + _BATCH)
            other = beside[part]
            metric.update(
                as_floats(shown[part]).to(metric.device),
                as_floats(other).to(metric.device) if isinstance(other, np.ndarray) else other,
                torch.arange(len(shown))[part],
            )
        found = {name: value.item() for name, value in metric.compute().items()}
        columns = dict(zip(metric.names, metric.samples()[0].T.cpu().numpy(), strict=True))
        metric.reset()
        base = base or columns
        if versus and label != PLAIN:
            for name, column in columns.items():
                gap = paired_difference(column, base[name])
                ends = {"": gap.value, "_lo": gap.low, "_hi": gap.high, "_sd": gap.sd, "_n": gap.n}
                found |= {f"{name}_vs_{PLAIN}{end}": value for end, value in ends.items()}
        if len(shown) == 1:  # which tells nothing of how far others lie from it
            found = {name: value for name, value in found.items() if not name.endswith(_SPREAD)}
        figures.add(label, found)


def _add_ratio(figures: Figures, label: str, seconds: np.ndarray, base: np.ndarray) -> None:
    ratio, name = paired_ratio(seconds, base), "cost/time_ratio"
    figures.add(label, {name: ratio.value, f"{name}_n": ratio.n})
    for end, value in {"_lo": ratio.low, "_hi": ratio.high}.items():
        if value is None:
            figures.unknown(label, f"{name}{end}", "a 95 % interval takes six rounds or more")
        else:
            figures.add(label, {f"{name}{end}": value})


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
