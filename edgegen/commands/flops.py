"""`python scripts/flops.py model=sd15 steps=8`: what a model costs, from its architecture alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ..api import apply
from ..cost import Summary
from ..pipelines.architectures import architecture
from ..pipelines.load import OPTIONS
from ..pipelines.run_cost import run_cost
from ..runs.atomic import write_atomic
from ..runs.record import Run
from ._main import command
from ._methods import methods_of
from ._numbers import flag, whole_number

_DTYPES = ("float32", "float16", "bfloat16")
# Promised in every `metrics.json` of this command: the UNet's.
_UNET_METRICS = (
    "cost/params",
    "cost/gmacs_all",
    "cost/gmacs_conv_linear",
    "cost/tflops_all",
    "cost/tflops_conv_linear",
)


@command("flops")
def main(cfg: DictConfig, run: Run) -> None:
    if cfg.dtype not in _DTYPES:
        raise ValueError(f"dtype={cfg.dtype}: must be one of {', '.join(_DTYPES)}")
    model: Any = OmegaConf.to_container(cfg.model, resolve=True, throw_on_missing=True)
    if given := [name for name in OPTIONS if model.get(name) is not None]:
        raise ValueError(
            f"model.{given[0]}={model[given[0]]}: is of weights, and none are read here; parts are "
            "chosen by component@model.components.vae=taesd"
        )
    for name in ("steps", "batch", "height", "width"):
        if cfg[name] is not None or name in ("steps", "batch"):
            whole_number(cfg, name, 1)
    flag(cfg, "guidance")
    methods = methods_of(cfg)
    summary = run_cost(
        architecture(model),
        steps=cfg.steps,
        guidance=cfg.guidance,
        batch=cfg.batch,
        height=cfg.height,
        width=cfg.width,
        dtype=getattr(torch, cfg.dtype),
        method=partial(apply, methods=methods) if methods else None,
    )
    metrics = summary.metrics()
    run.log(metrics)
    for name in _UNET_METRICS:
        if name not in metrics:
            run.note(name, f"{model['name']} has no UNet")
    title = f"{model['name']}, {cfg.steps} steps, guidance={cfg.guidance}"
    title += f", {' + '.join(methods)}" if methods else ""
    text = _text(title, summary)
    write_atomic(run.dir / "cost.txt", text)
    print(text, end="")


def _text(title: str, summary: Summary) -> str:
    parts = [f"{title}: the whole run", summary.table()]
    if "unet" in summary:
        parts += ["", "One UNet call on one sample", summary.block_table("unet")]
        metrics = summary.metrics()
        parts += [
            "",
            f"UNet, whole run, one picture: {metrics['cost/tflops_all']:.2f} TFLOPs (all), "
            f"{metrics['cost/tflops_conv_linear']:.2f} TFLOPs (conv+linear); 1 MAC = 2 FLOPs",
        ]
    return "\n".join(parts) + "\n"
