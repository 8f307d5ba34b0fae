"""`python scripts/quantize.py model=… method=[w4a8]`: a checkpoint of packed integers."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from ..pipelines.recommended import sampling_of, write_sampling
from ..pipelines.save import replaced_folder
from ..quantization import Report, quantize_, quantized
from ..runs.atomic import write_atomic
from ..runs.record import Run
from ._generation import model_files
from ._main import command
from ._methods import method_configs, method_settings
from ._model import load_model, quiet


@command("quantize")
def main(cfg: DictConfig, run: Run) -> None:
    """Quantize each part that the methods name, save the pipeline, and say what was done."""
    specs = _specs(cfg)
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_model(cfg, str(device))
    settings = {"model": str(cfg.model.source), "methods": method_settings(cfg)}
    run.info(device=str(pipe.device), settings=settings)
    for file in model_files(pipe):
        run.used_file(file)
    reports = {}
    for name, spec in specs.items():
        with quiet():
            reports[name] = quantize_(pipe, **spec)
    with replaced_folder(run.dir / "model") as new, quiet():
        pipe.save_pretrained(new)
        if sampling := sampling_of(pipe):
            write_sampling(new, sampling)
    text = json.dumps({name: report.plain() for name, report in reports.items()}, indent=1)
    write_atomic(run.dir / "quantized.json", text + "\n")
    run.log(_numbers(reports))
    for report in reports.values():
        print(report.table())
    print(f"model={run.dir / 'model'} in every command, edgegen.load in Python")


def _specs(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Method → what `quantize_` is called with."""
    specs: dict[str, dict[str, Any]] = {}
    for name, each in method_configs(cfg).items():
        made = instantiate(each)
        if not isinstance(made, partial) or made.func is not quantized:
            raise ValueError(f"method={name}: does not quantize weights that can be saved")
        specs[name] = dict(made.keywords)
    if not specs:
        raise ValueError("method=[]: say how to quantize, such as method=[w8a8]")
    return specs


def _numbers(reports: dict[str, Report]) -> dict[str, float]:
    rows = [row for report in reports.values() for row in report.rows]
    return {
        "run/layers": sum(row.values > 0 for row in rows),
        "cost/layers_plain_mb": sum(row.plain_bytes for row in rows) / 1e6,
        "cost/layers_stored_mb": sum(row.stored_bytes for row in rows) / 1e6,
    }
