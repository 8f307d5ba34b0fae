"""`python scripts/plug_and_play.py`: pictures drawn anew under another prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from ..api import apply
from ..cost import CostTracker
from ..cost.latency import timing
from ..data.emoji import FAMILY, STYLES, EmojiSet
from ..data.evaluation import evaluation_pictures
from ..data.views import BACKGROUNDS, composite
from ..media.pictures import read_picture
from ..metrics.quality.paired import PairedError
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.text import ClipScore, DirectionalSimilarity
from ..runs.pictures import grid, picture_name, read_settings, write_png
from ..runs.record import Run
from ..sampling.plug_and_play import plug_and_play
from ._asked import JUDGE
from ._domain import read_domain
from ._generation import load_pipeline, model_files, sampling_settings
from ._main import command
from ._methods import methods_of
from ._model import quiet
from ._numbers import whole_number
from ._sampling import guidance_scale, read_text

_SHOWN = 16


@dataclass(frozen=True)
class Edit:
    """One picture to draw anew: (H, W, 3) uint8, its caption and the new one."""

    source: np.ndarray
    caption: str
    prompt: str


@command("plug_and_play", free_text=("picture", "prompt", "caption"))
def main(cfg: DictConfig, run: Run) -> None:
    """Make the pictures that are missing; say what they cost, and what became of the sources."""
    for key in ("steps", "inversion_steps", "batch_size", "n"):
        whole_number(cfg, key, 1)
    edits = _asked(cfg)
    pipe = load_pipeline(cfg, cfg.steps)
    guidance = guidance_scale(cfg, pipe)
    methods = methods_of(cfg)
    keys = ("steps", "inversion_steps", "features", "attention")
    how: dict[str, Any] = {"guidance": guidance, **{key: cfg[key] for key in keys}}
    settings = sampling_settings(cfg, pipe, cfg.steps, guidance) | how
    settings["batch_size"] = cfg.batch_size
    with apply(pipe, methods):  # now, since nothing is written yet
        pass
    factor = 2 ** (len(pipe.unet.config.down_block_types) - 1) * pipe.vae_scale_factor
    if any(side % factor for edit in edits for side in edit.source.shape[:2]):
        raise ValueError(f"picture: both sides must be multiples of {factor} pixels")
    files = [run.folder / "images" / picture_name(index) for index in range(len(edits))]
    own = [
        settings | {"prompt": e.prompt, "caption": e.caption, "index": i, "seed": 0}
        for i, e in enumerate(edits)
    ]
    batches = [
        range(i, min(i + cfg.batch_size, len(edits))) for i in range(0, len(edits), cfg.batch_size)
    ]
    missing = [batch for batch in batches if any(read_settings(files[i]) != own[i] for i in batch)]
    made = iter(tqdm(missing, desc="edits", unit="batch"))
    first = next(made, None)
    if first is not None:  # a mistake in `how` is told before anything is written
        with quiet(), apply(pipe, methods), CostTracker(pipe) as cost:
            start = time.perf_counter()
            pictures = _draw(pipe, [edits[i] for i in first], cfg.batch_size, how)
            seconds = [time.perf_counter() - start]
            _start(run, pipe, settings)
            _write(files, own, first, pictures)
        work = cost.summary(images=cfg.batch_size).metrics()
        with quiet(), apply(pipe, methods):
            for batch in made:
                start = time.perf_counter()
                pictures = _draw(pipe, [edits[i] for i in batch], cfg.batch_size, how)
                seconds.append(time.perf_counter() - start)
                _write(files, own, batch, pictures)
        names = ("tflops_all", "tflops_conv_linear", "total_tflops_all", "unet_calls")
        run.log({f"cost/{name}": work[f"cost/{name}"] for name in names})
        timed = seconds[1:] or seconds  # the first is counted as it runs
        each_image = [spent / cfg.batch_size for spent in timed]
        run.log(timing(each_image).metrics("cost/seconds_per_image"))
    else:
        _start(run, pipe, settings)
        for name in ("tflops_all", "tflops_conv_linear", "seconds_per_image"):
            run.note(f"cost/{name}", "all pictures were there")
    _judge(run, edits, [read_picture(file) for file in files])
    print("\n".join(f"{name:<36} {value:>10.4g}" for name, value in run.metrics.items() if value))
    print(f"{len(edits)} pictures in {run.dir / 'images'}")


def _asked(cfg: DictConfig) -> list[Edit]:
    """The user's own picture and prompt, or drawings of the domain in another style's words."""
    prompt, caption = read_text(cfg, "prompt"), read_text(cfg, "caption")
    if cfg.picture is not None:
        if prompt is None:
            raise ValueError("picture: give prompt=… beside it, which says what it shall become")
        return [Edit(read_picture(cfg.picture), caption or "", prompt)]
    if prompt is not None or caption is not None:
        raise ValueError("prompt, caption: are for picture=FILE")
    emoji = read_domain(cfg)
    places = evaluation_pictures(emoji, "train", "dev")[: cfg.n]
    if not places:
        raise ValueError("domain: holds no caption to edit; widen domain.groups or domain.styles")
    return [_edit(emoji, place) for place in places]


def _edit(emoji: EmojiSet, place: int) -> Edit:
    """A real picture on white, and its caption with the next style of another family."""
    picture = emoji.pictures[place]
    start = STYLES.index(picture.style)
    styles = [*STYLES[start:], *STYLES[:start]]
    other = next(style for style in styles if FAMILY[style] != FAMILY[picture.style])
    white = np.array(BACKGROUNDS["white"])
    return Edit(
        composite(emoji.rgba(place), white),
        emoji.caption(picture),
        emoji.caption(replace(picture, style=other)),
    )


def _draw(pipe: Any, edits: Sequence[Edit], size: int, how: dict[str, Any]) -> list[Image.Image]:
    """In batches of one size, the last one filled up, so that no picture depends on the others."""
    filled = [*edits, *[edits[-1]] * (size - len(edits))]
    pictures = as_floats([edit.source for edit in filled]) * 2 - 1
    return plug_and_play(pipe, pictures, [edit.prompt for edit in filled], **how)[: len(edits)]


def _start(run: Run, pipe: Any, settings: dict[str, Any]) -> None:
    run.info(device=str(pipe.device), settings=settings)
    for file in model_files(pipe):
        run.used_file(file)


def _write(
    files: Sequence[Path], own: Sequence[Any], places: Sequence[int], pictures: Sequence[Any]
) -> None:
    for place, picture in zip(places, pictures, strict=True):
        write_png(files[place], picture, own[place])


def _judge(run: Run, edits: Sequence[Edit], pictures: Sequence[np.ndarray]) -> None:
    """How much of the source is kept, and how well the new prompt is met."""
    cells = [(Image.fromarray(e.source), e.caption) for e in edits[:_SHOWN]]
    after = [(Image.fromarray(p), e.prompt) for e, p in zip(edits, pictures, strict=False)]
    write_png(run.dir / "grid.png", grid([*cells, *after[:_SHOWN]], len(cells)), {})
    if len({edit.source.shape for edit in edits}) > 1:
        return
    sources, drawn = as_floats([edit.source for edit in edits]), as_floats(pictures)
    kept = PairedError()
    kept.update(drawn, sources)
    names = {
        "quality/ode_rmse": "quality/source_rmse",
        "quality/ode_efflite0": "quality/source_efflite0",
    }
    for name, value in kept.compute().items():
        base = next(each for each in names if name.startswith(each))
        run.log({names[base] + name.removeprefix(base): value.item()})
    if not JUDGE.is_dir():
        run.note("quality/clip_judge", "no CLIP that could judge")
        return
    captions, prompts = [e.caption for e in edits], [e.prompt for e in edits]
    text, direction = ClipScore(JUDGE, "judge"), DirectionalSimilarity(JUDGE, "judge")
    text.update(drawn, prompts)
    direction.update(sources, drawn, captions, prompts)
    for metric in (text, direction):
        run.log({name: value.item() for name, value in metric.compute().items()})
