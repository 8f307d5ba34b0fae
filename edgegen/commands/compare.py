"""`python scripts/compare.py`: what methods save and what they cost in quality, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from PIL import Image

from ..api import apply
from ..cost.latency import Reading, series
from ..media.pictures import read_picture
from ..metrics.quality.paired import PairedError
from ..metrics.quality.samples import SampleMetric
from ..metrics.quality.text import ClipScore
from ..metrics.quality.truths import pipeline_truths
from ..runs.atomic import write_atomic
from ..runs.comparison import TRUTH, Figures, Task, count, judge, measure_memory, measure_time
from ..runs.comparison_report import csv_table, csv_text, markdown, notes, write_comparison
from ..runs.pictures import grid, picture_name, write_png
from ..runs.record import Run, read_record
from ..sampling.generate import read_image
from ._compared import Compared, check_fit, compared
from ._generation import (
    Picture,
    draw,
    load_pipeline,
    made_by,
    model_files,
    pictures_of,
    report_cuts,
    sampling_settings,
)
from ._main import command
from ._model import load_options, quiet
from ._numbers import flag, whole_number
from ._prompts import read_prompts
from ._sampling import guidance_scale, image_guidance, read_text

_OUTPUTS = ("report.html", "table.md", "results.csv", "times.csv", "grid.png")
_SAMPLING = ("steps", "guidance", "height", "width", "negative_prompt", "image_guidance")


@command("compare", free_text=("prompts", "prompts_file", "negative_prompt", "image", "clip"))
def main(cfg: DictConfig, run: Run) -> None:
    """Draw, measure and judge with every method; write the table, the sheet and the report."""
    prompts = read_prompts(cfg)
    _check(cfg)
    rows = compared(cfg)
    pipe = load_pipeline(cfg, cfg.steps)
    settings = sampling_settings(cfg, pipe, cfg.steps, guidance_scale(cfg, pipe))
    settings.pop("methods", None)  # each row has its own
    check_fit(pipe, rows)
    error, score = _judges(cfg, pipe)

    _start(cfg, run, pipe, {**settings, "methods": _texts(rows)}, prompts)
    made = _draw(cfg, run, pipe, rows, prompts, settings)
    methods = {label: row.methods for label, row in rows.items()}
    figures = Figures(run, rows)
    seeds = [(cfg.seed, index) for index in range(len(prompts))]
    how = {key: settings[key] for key in _SAMPLING if key in settings}
    if cfg.image is not None:
        how["image"] = read_image(cfg.image, settings["height"], settings["width"])
    task = Task(pipe, prompts, seeds, how, cfg.batch_size)
    with quiet():
        count(figures, methods, task)
        readings = measure_time(
            figures, methods, task, rounds=cfg.repeats, warmup=cfg.warmup, seed=cfg.seed
        )
        if cfg.memory:
            load = {"source": cfg.model.source, "scheduler": cfg.scheduler, **load_options(cfg)}
            measure_memory(figures, methods, task, load | {"device": str(pipe.device)})
    pictures = {
        label: np.stack([read_picture(each.file) for each in row]) for label, row in made.items()
    }
    files = {label: [each.file for each in row] for label, row in made.items()}
    if error is not None:
        truth = _truth(cfg, task)
        judge(figures, pictures, error, truth, versus=True)
        files = {TRUTH: _keep(run.dir / "images" / TRUTH, truth, settings, cfg)} | files
    if score is not None:
        judge(figures, pictures, score, prompts)
    _write(cfg, run, figures, _texts(rows), prompts, files, readings)
    print((run.dir / "table.md").read_text(encoding="utf-8"))
    print((run.dir / "report.html").resolve())


def _check(cfg: DictConfig) -> None:
    for key in ("negative_prompt", "clip"):
        read_text(cfg, key)
    for key in ("seed", "warmup"):
        whole_number(cfg, key, 0)
    for key in ("steps", "batch_size", "repeats", "truth_steps", "shown"):
        whole_number(cfg, key, 1)
    image_guidance(cfg)
    for key in ("memory", "truth"):
        flag(cfg, key)


def _judges(
    cfg: DictConfig, pipe: DiffusionPipeline
) -> tuple[SampleMetric | None, SampleMetric | None]:
    error: SampleMetric | None = None
    score: SampleMetric | None = None
    if cfg.truth:
        most = pipe.scheduler.config.num_train_timesteps
        if cfg.truth_steps > most:
            raise ValueError(f"truth_steps={cfg.truth_steps}: must be at most {most}")
        error = PairedError().to(pipe.device)
    if cfg.clip is not None:
        score = ClipScore(cfg.clip).to(pipe.device)
    return error, score


def _start(
    cfg: DictConfig,
    run: Run,
    pipe: DiffusionPipeline,
    settings: Mapping[str, Any],
    prompts: Sequence[str],
) -> None:
    for name in _OUTPUTS:  # of an earlier run: they must not stand for this one
        (run.dir / name).unlink(missing_ok=True)
    run.info(device=str(pipe.device), settings=dict(settings))
    prompt_file = [Path(cfg.prompts_file).expanduser()] if cfg.prompts_file else []
    image = [Path(cfg.image)] if cfg.image else []
    for file in [*model_files(pipe), *prompt_file, *image]:
        run.used_file(file)
    with quiet():
        report_cuts(pipe, prompts, run, read_text(cfg, "negative_prompt"))
    run.log({"run/prompts": len(prompts), "run/threads": torch.get_num_threads()})


def _texts(rows: Mapping[str, Compared]) -> dict[str, str]:
    return {label: row.text() for label, row in rows.items()}


def _draw(
    cfg: DictConfig,
    run: Run,
    pipe: DiffusionPipeline,
    rows: Mapping[str, Compared],
    prompts: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, list[Picture]]:
    """Every prompt with every method: label → pictures, in the order of the prompts."""
    asks = [(prompt, index) for index, prompt in enumerate(prompts)]
    made, new = {}, 0
    for label, row in rows.items():
        own = {**settings, **({"methods": row.configs} if row.configs else {})}
        own |= made_by({"method": row.configs, "model": load_options(cfg)})
        made[label] = pictures_of(run.dir / "images" / label, asks, [cfg.seed], own)
        with apply(pipe, row.methods):
            new += draw(pipe, made[label], cfg.batch_size, description=label)
    run.log({"run/images": len(prompts) * len(rows), "run/images_new": new})
    return made


def _truth(cfg: DictConfig, task: Task) -> np.ndarray:
    how = {key: value for key, value in task.settings.items() if key != "steps"}
    with quiet():
        return pipeline_truths(
            task.pipe,
            task.prompts,
            task.seeds,
            **how,
            steps=cfg.truth_steps,
            cache=cfg.cache,
            batch=cfg.batch_size,
        )


def _keep(
    folder: Path, truth: np.ndarray, settings: Mapping[str, Any], cfg: DictConfig
) -> list[Path]:
    note = {"model": settings["model"], "truth_steps": cfg.truth_steps, "seed": cfg.seed}
    return [
        write_png(folder / picture_name(index), Image.fromarray(picture), note | {"index": index})
        for index, picture in enumerate(truth)
    ]


def _write(
    cfg: DictConfig,
    run: Run,
    figures: Figures,
    texts: Mapping[str, str],
    prompts: Sequence[str],
    files: Mapping[str, Sequence[Path]],
    readings: Sequence[Reading],
) -> None:
    rows = figures.rows
    explained = notes(
        rows,
        rounds=cfg.repeats,
        warmup=cfg.warmup,
        batch=cfg.batch_size,
        threads=torch.get_num_threads(),
        truth_steps=cfg.truth_steps,
    )
    write_atomic(run.dir / "table.md", markdown(rows, explained))
    write_atomic(run.dir / "results.csv", csv_table(rows))
    meters = list(readings[0].took)
    taken = ([each.round, each.place, each.method, *each.took.values()] for each in readings)
    write_atomic(run.dir / "times.csv", csv_text(["round", "place", "method", *meters], taken))
    shown = [prompt or "(empty prompt)" for prompt in prompts[: cfg.shown]]
    sheet = {label: row[: cfg.shown] for label, row in files.items()}
    cells = [
        (file, f"{label} · {prompt}")
        for label, row in sheet.items()
        for file, prompt in zip(row, shown, strict=True)
    ]
    write_png(run.dir / "grid.png", grid(cells, len(shown)), {})
    noun = "prompt" if len(prompts) == 1 else "prompts"
    record = read_record(run.dir)
    settings = record["settings"]
    write_comparison(
        run.dir / "report.html",
        title=f"Methods side by side on {Path(settings['model']).name}",
        lead=f"{settings['steps']} steps of {settings['scheduler']}, guidance "
        f"{settings['guidance']:g}, {len(prompts)} {noun}, pictures of {settings['width']} × "
        f"{settings['height']} pixels, the same noise for every method.",
        rows=rows,
        notes=explained,
        methods=texts,
        seconds={label: series(readings, label) / cfg.batch_size for label in rows},
        prompts=shown,
        pictures=sheet,
        left_out=len(prompts) - len(shown),
        record=record,
    )
