"""`python scripts/generate.py`: pictures from prompts, with what they cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ..api import apply
from ..runs.atomic import write_atomic
from ..runs.generation import GenerationCost, cost_table, read_cost
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ._generation import (
    Picture,
    draw,
    load_pipeline,
    model_files,
    pictures_of,
    remove_surplus,
    report_cuts,
    sampling_settings,
)
from ._main import command
from ._methods import methods_of
from ._model import quiet
from ._numbers import whole_number
from ._prompts import read_prompts
from ._sampling import guidance_scale, image_guidance, read_text


@dataclass(frozen=True)
class Made:
    """What a generation left: the pictures, in order, how many are new, and their cost."""

    pictures: list[Picture]
    new: int
    cost: dict[str, Any] | None


@command("generate", free_text=("prompts", "prompts_file", "negative_prompt", "image"))
def main(cfg: DictConfig, run: Run) -> None:
    """Make the pictures that the settings ask for, a grid of them, and the record."""
    made = make_pictures(cfg, run)
    shown = made.pictures[: cfg.grid_max]
    if shown:
        captions = [
            (each.prompt or "(empty prompt)")
            + (f" · seed {each.seed}" if cfg.num_images > 1 else "")
            for each in shown
        ]
        columns = cfg.num_images if 1 < cfg.num_images <= 10 else min(10, round(len(shown) ** 0.5))
        files = [picture.file for picture in shown]
        write_png(run.dir / "grid.png", grid(zip(files, captions, strict=True), columns), {})
    if made.cost:
        print(cost_table(made.cost))
    total = len(made.pictures)
    print(f"{total} pictures in {run.dir / 'images'}, {made.new} of them new")
    if shown:
        part = f"the first {len(shown)} of them" if len(shown) < total else "all of them"
        print(f"{run.dir / 'grid.png'} shows {part}")


def make_pictures(cfg: DictConfig, run: Run) -> Made:
    """Make those of the pictures that are not in `run.folder / "images"` yet.

    Each is a PNG with its settings in text chunks. Pictures there with the same settings are kept,
    others under the same names are replaced, and what is left of a longer run is removed. Logs
    `cost/…` (of one picture) and `run/…`.

    Raises ValueError or FileNotFoundError for settings that are not allowed, before anything is
    written.
    """
    prompts = read_prompts(cfg)
    read_text(cfg, "negative_prompt")
    seed = whole_number(cfg, "seed", 0)
    steps, copies = whole_number(cfg, "steps", 1), whole_number(cfg, "num_images", 1)
    batch_size = whole_number(cfg, "batch_size", 1)
    whole_number(cfg, "grid_max", 0)
    image_guidance(cfg)
    pipe = load_pipeline(cfg, steps)
    settings = sampling_settings(cfg, pipe, steps, guidance_scale(cfg, pipe))
    methods = methods_of(cfg)

    seeds = range(seed, seed + copies)
    with apply(pipe, methods):
        run.info(device=str(pipe.device), seeds=list(seeds), settings=settings)
        prompt_file = [Path(cfg.prompts_file).expanduser()] if cfg.prompts_file else []
        for file in [*model_files(pipe), *prompt_file]:
            run.used_file(file)
        with quiet():
            report_cuts(pipe, prompts, run, read_text(cfg, "negative_prompt"))
        folder = run.dir / "images"
        asks = [(prompt, index) for index, prompt in enumerate(prompts)]
        pictures = pictures_of(folder, asks, seeds, settings)
        remove_surplus(folder, pictures)
        with GenerationCost(pipe) as cost:
            new = draw(pipe, pictures, batch_size, cost=cost)
    run.log({"run/images": len(pictures), "run/images_new": new})
    return Made(pictures, new, _keep_cost(run, cost.result(), settings))


def _keep_cost(
    run: Run, found: dict[str, Any] | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Log the cost and keep it in `cost.json`; where nothing was made, take what is kept there."""
    path = run.dir / "cost.json"
    if found is not None:
        content = {"settings": settings, "cost": found}
        write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        found = read_cost(path, settings)
    if found is None:
        for name in ("tflops_all", "tflops_conv_linear", "seconds_per_image"):
            run.note(f"cost/{name}", "all pictures were there, and no cost.json of their making")
    else:
        run.log(found["metrics"])
    return found
