"""What making pictures cost, by part of the pipeline: work counted, time measured."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..cost import CostTracker
from ..cost.latency import timing
from ..cost.summary import text_table, uncounted_remark
from .memory import process_memory, restart_peak


class GenerationCost:
    """Counts and times a pipeline, batch by batch.

        with GenerationCost(pipe) as cost:
            with cost.batch(images=8):
                pipe(...)
        cost.result()

    The first batch, in which the work is counted and caches fill, is left out of the times where
    there is a second one.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._tracker = CostTracker(pipe)
        self._stack = ExitStack()
        self._batches: list[tuple[int, float, dict[str, float]]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    def __enter__(self) -> GenerationCost:
        if self._pipe.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._pipe.device)
        else:
            restart_peak()  # past what this process did before
        with ExitStack() as stack:
            stack.enter_context(self._tracker)
            for name, module in _timed_parts(self._pipe).items():
                stack.enter_context(self._timed(name, module))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Around the making of `images` pictures."""
        self._seconds = defaultdict(float)
        start = self._now()
        yield
        self._batches.append((images, self._now() - start, self._seconds))

    def result(self) -> dict[str, Any] | None:
        """The cost of one picture, as plain data; None if no picture was made.

        `metrics` are numbers for `metrics.json`. `parts` has a row a part: `name`, `params`,
        `calls` (in a batch), `gmacs_all`, `gmacs_conv_linear`, `share` (of the MACs of the
        convention `all`, 0 to 1) and `seconds` (None where not timed). Times are wall time a
        picture, medians over batches. `images` is the number of pictures that were timed, `warm`
        whether the first batch is left out.
        `uncounted` names operators that no formula covers, with how often they ran.
        """
        if not self._batches:
            return None
        made = sum(images for images, _, _ in self._batches)
        timed = self._batches[1:] or self._batches
        images = sum(count for count, _, _ in timed)
        by_part: dict[str, list[float]] = defaultdict(list)
        for count, _, spent in timed:
            for name, part_seconds in spent.items():
                by_part[name].append(part_seconds / count)
        summary = self._tracker.summary(images=made)
        everything = summary.total.macs_all
        parts = [
            {
                "name": name,
                "params": part.total.params,
                "calls": round(part.calls / len(self._batches), 2),
                "gmacs_all": part.total.macs_all / made / 1e9,
                "gmacs_conv_linear": part.total.macs_conv_linear / made / 1e9,
                "share": part.total.macs_all / everything if everything else None,
                "seconds": timing(by_part[name]).median if name in by_part else None,
            }
            for name, part in summary.items()
        ]
        metrics = {
            **summary.metrics(),
            **timing([whole / count for count, whole, _ in timed]).metrics(
                "cost/seconds_per_image"
            ),
            "run/threads": torch.get_num_threads(),
            "cost/peak_memory_mb": _peak_memory(self._pipe.device),
        }
        return {
            "metrics": metrics,
            "parts": parts,
            "images": images,
            "warm": len(self._batches) > 1,
            "uncounted": dict(summary.uncounted),
        }

    @contextmanager
    def _timed(self, name: str, module: nn.Module) -> Iterator[None]:
        started: list[float] = []

        def before(*_: Any) -> None:
            started.append(self._now())

        def after(*_: Any) -> None:
            self._seconds[name] += self._now() - started.pop()

        hooks = [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _now(self) -> float:
        if self._pipe.device.type == "cuda":
            torch.cuda.synchronize(self._pipe.device)
        return time.perf_counter()


def cost_table(cost: Mapping[str, Any]) -> str:
    """The cost of one picture by part, as text; then what could not be counted."""
    heads = ("one picture", "params", "calls", "GMACs all", "conv+linear", "share", "ms")
    rows = [
        (
            str(part["name"]),
            f"{part['params']:,}",
            f"{part['calls']:g}",
            f"{part['gmacs_all']:,.4g}",
            f"{part['gmacs_conv_linear']:,.4g}",
            "" if part["share"] is None else f"{100 * part['share']:.1f} %",
            "" if part["seconds"] is None else f"{1000 * part['seconds']:,.1f}",
        )
        for part in cost["parts"]
    ]
    metrics = cost["metrics"]
    total = (
        "total",
        f"{metrics['cost/total_params']:,}",
        "",
        f"{metrics['cost/total_tflops_all'] * 500:,.4g}",
        f"{metrics['cost/total_tflops_conv_linear'] * 500:,.4g}",
        "",
        f"{1000 * metrics['cost/seconds_per_image']:,.1f}",
    )
    remarks = [uncounted_remark(cost["uncounted"])] if cost["uncounted"] else []
    return "\n".join([text_table(heads, [*rows, total]), *remarks])


def read_cost(path: str | Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cost in a `cost.json` that was written for the same settings, else None."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("settings") != dict(settings):
        return None
    return found.get("cost")


def _timed_parts(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        if hasattr(module, "decode"):  # pipelines call `decode`, which hooks do not see
            parts[f"{name}.decoder"] = module.get_submodule("decoder")
        else:
            parts[name] = module
    return parts


def _peak_memory(device: torch.device) -> float:
    """The most memory held at once, in MB: on CUDA by tensors, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return process_memory("VmHWM") / 1e6
