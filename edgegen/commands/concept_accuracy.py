"""`python scripts/concept_accuracy.py`: does a model draw what it is asked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, ListConfig
from PIL import Image, ImageOps
from tqdm import tqdm

from ..data.emoji import STYLES, EmojiSet
from ..data.evaluation import Half, caption_number, evaluation_pictures
from ..metrics.quality.concept_score import ConceptScore
from ..metrics.quality.efflite0 import EffLite0, picture_features
from ..runs.environment import sha256
from ..runs.looks import log_look
from ..runs.pictures import grid, picture_name, read_settings, write_png
from ..runs.record import Run
from ..sampling.generate import sample
from ._domain import RealPictures, read_domain
from ._main import command
from .generate import (
    _digest,
    _guidance,
    _model_files,
    _pipeline,
    _public,
    _quiet,
    _report_cuts,
    _size,
    _whole,
)

_HALVES: dict[str, Half | None] = {"dev": "dev", "test": "test", "all": None}
_CELLS = ("train", "cells", "concepts")
_SHARES = ("quality/concept_accuracy", "quality/concept_accuracy_relative", "quality/copy_rate")


@command("concept_accuracy")
def main(cfg: DictConfig, run: Run) -> None:
    """Draw the asked captions, judge the pictures, and write the figures and a random sheet."""
    for key, allowed in (("split", tuple(_HALVES)), ("cells", _CELLS)):
        if cfg[key] not in allowed:
            raise ValueError(f"{key}={cfg[key]}: must be one of {', '.join(allowed)}")
    for key in (
        "steps",
        "batch_size",
        "nearest",
        "resamples",
        *(["n"] if cfg.n is not None else []),
    ):
        _whole(cfg, key, 1)
    _whole(cfg, "shown", 0)
    seeds = _seeds(cfg)
    emoji = read_domain(cfg)
    pipe = _pipeline(cfg, cfg.steps, None)
    guidances = _guidances(cfg, pipe)
    height, width = _size(cfg, pipe)
    real = RealPictures.of(emoji, cfg.cache)
    asks, unanswerable = _asks(cfg, real)

    files = _model_files(Path(pipe.config._name_or_path))
    settings = {
        "model": str(cfg.model.source),
        "model_sha256": _digest([sha256(file) for file in files]),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": _digest(_public(pipe.scheduler.config)),
        "steps": cfg.steps,
        "height": height,
        "width": width,
    }
    run.info(device=str(pipe.device), seeds=seeds, settings={**settings, "guidance": guidances})
    for file in [*files, EffLite0.weights_file()]:
        run.used_file(file)
    run.log({"run/captions": len(asks), "run/captions_unanswerable": unanswerable})
    with _quiet():
        _report_cuts(pipe, [emoji.caption(emoji.pictures[ask]) for ask in asks], run)

    made, scores, found = {}, {}, {}
    for guidance in guidances:
        folder = run.dir / "images" / f"guidance-{guidance:g}"
        wanted = {**settings, "guidance": guidance}
        made[guidance] = _draw(pipe, emoji, asks, seeds, wanted, folder, cfg.batch_size)
        scores[guidance] = _score(made[guidance], asks, real, cfg.nearest, pipe.device)
        found[guidance] = scores[guidance].metrics(cfg.resamples)
        if len(guidances) > 1:
            run.log(
                {
                    f"{name}_guidance_{guidance:g}": found[guidance].get(name, float("nan"))
                    for name in _SHARES
                }
            )
    best = max(guidances, key=lambda guidance: found[guidance][_SHARES[0]])
    run.log({**found[best], "run/guidance": best})
    if _SHARES[1] not in found[best]:
        run.note(_SHARES[1], "no real picture of the asked ones is found right")
    held = [*emoji.indices("cells"), *emoji.indices("concepts")]
    if held:  # what the rate is where nothing can have been copied
        rate = real.copied(real.gallery.features[held]).mean()
        run.log({"quality/copy_rate_real": rate, "quality/copy_rate_real_n": len(held)})
    if cfg.log_looks and cfg.split != "dev":
        _log_look(cfg, settings, found[best], best)
    if cfg.shown:
        sheet = _sheet(made[best], asks, real, scores[best].correct, cfg.shown)
        write_png(run.dir / "results.png", sheet, {})
    print(_table(found))
    print(_by_style(found[best]))
    print(
        f"{len(asks)} captions ({cfg.cells}, {cfg.split}), pictures of each: {len(seeds)}"
        + (f"; {unanswerable} more left out that no real picture answers" if unanswerable else "")
    )
    if len(guidances) > 1:
        print(f"best guidance: {best:g}")


def _seeds(cfg: DictConfig) -> list[int]:
    given = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else [cfg.seeds]
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in given)
    if not given or not whole or len(set(given)) < len(given):
        raise ValueError(f"seeds={cfg.seeds}: must be different whole numbers, 0 or more")
    return given


def _guidances(cfg: DictConfig, pipe: DiffusionPipeline) -> list[float]:
    given = list(cfg.guidance) if isinstance(cfg.guidance, ListConfig) else [cfg.guidance]
    if not given:
        raise ValueError("guidance=[]: the list is empty; give at least one")
    if len(given) > 1 and cfg.split != "dev":
        raise ValueError(f"guidance={cfg.guidance}: several are compared on split=dev alone")
    found = []
    for value in given:
        one = cfg.copy()
        one.guidance = value
        found.append(_guidance(one, pipe))
    return list(dict.fromkeys(found))


def _asks(cfg: DictConfig, real: RealPictures) -> tuple[list[int], int]:
    """Positions of the pictures whose captions are asked, and how many cannot be answered."""
    found = evaluation_pictures(real.emoji, cfg.cells, _HALVES[cfg.split])
    asks = [ask for ask, can in zip(found, real.answerable(found), strict=True) if can]
    if not asks:
        raise ValueError(
            f"cells={cfg.cells}, split={cfg.split}: no caption of the domain can be asked; its "
            "concepts must be drawn in two style families or more"
        )
    return asks[: cfg.n], len(found) - len(asks)


def _draw(
    pipe: DiffusionPipeline,
    emoji: EmojiSet,
    asks: Sequence[int],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    folder: Path,
    batch_size: int,
) -> list[Path]:
    """The files of all pictures, caption by caption; makes those that are missing."""
    jobs: list[tuple[Path, dict[str, Any]]] = []
    for ask in asks:
        picture = emoji.pictures[ask]
        own = {"prompt": emoji.caption(picture), "index": caption_number(emoji, picture)}
        for seed in seeds:
            jobs.append((folder / picture_name(len(jobs)), {**own, "seed": seed, **settings}))
    missing = {file for file, wanted in jobs if read_settings(file) != wanted}
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="picture")
    with bar:
        bar.set_description(f"guidance {settings['guidance']:g}")
        for start in range(0, len(jobs), batch_size):
            # Made whole though one picture be missing: bits depend on the shape of the batch.
            batch = jobs[start : start + batch_size]
            if not any(file in missing for file, _ in batch):
                continue
            with _quiet():
                images = sample(
                    pipe,
                    [wanted["prompt"] for _, wanted in batch],
                    [(wanted["seed"], wanted["index"]) for _, wanted in batch],
                    steps=settings["steps"],
                    guidance=settings["guidance"],
                    height=settings["height"],
                    width=settings["width"],
                )
            for (file, wanted), image in zip(batch, images, strict=True):
                if file in missing:
                    write_png(file, image, wanted)
                    bar.update()
    return [file for file, _ in jobs]


def _read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _score(
    files: Sequence[Path], asks: Sequence[int], real: RealPictures, k: int, device: torch.device
) -> ConceptScore:
    pictures = map(_read, tqdm(files, desc="judging", unit="picture"))
    features = picture_features(EffLite0().to(device), pictures)
    shape = len(asks), len(files) // len(asks)
    asked = np.repeat(asks, shape[1]).tolist()
    return ConceptScore(
        correct=real.correct(features, asked, k).reshape(shape),
        copied=real.copied(features).reshape(shape),
        real=real.correct(real.gallery.features[torch.tensor(asks)], asks, k),
        styles=np.array([real.emoji.pictures[ask].style for ask in asks]),
    )


def _log_look(
    cfg: DictConfig, settings: Mapping[str, Any], found: Mapping[str, float], guidance: float
) -> None:
    log_look(
        {
            "command": "concept_accuracy",
            "model": Path(settings["model"]).name,
            **{key: settings[key] for key in ("model_sha256", "scheduler", "steps")},
            "guidance": guidance,
            **{key: cfg[key] for key in ("cells", "split")},
            "captions": found[f"{_SHARES[0]}_n"],
            "seeds": " ".join(map(str, _seeds(cfg))),
            **{name.partition("/")[2]: f"{found.get(name, np.nan):.4f}" for name in _SHARES},
        }
    )


def _sheet(
    files: Sequence[Path],
    asks: Sequence[int],
    real: RealPictures,
    correct: np.ndarray,
    shown: int,
) -> Image.Image:
    """Random pictures, unpicked, each beside the real one, with a tick where it is right."""
    rng = np.random.default_rng(0)
    cells = []
    for number in sorted(rng.choice(len(files), min(shown, len(files)), replace=False).tolist()):
        caption, copy = divmod(number, correct.shape[1])
        image = Image.fromarray(_read(files[number]))
        pair = Image.new("RGB", (2 * image.width, image.height), "white")
        pair.paste(image, (0, 0))
        drawing = Image.fromarray(real.pixels[asks[caption]])
        pair.paste(drawing.resize(image.size), (image.width, 0))
        right = correct[caption, copy]
        framed = ImageOps.expand(pair, 2, "#1a7f37" if right else "#c62828")
        text = real.emoji.caption(real.emoji.pictures[asks[caption]])
        cells.append((framed, f"{'✓' if right else '✗'} {text}"))
    return grid(cells, 5, least=256)


def _table(found: Mapping[float, Mapping[str, float]]) -> str:
    heads = ("guidance", "concept accuracy", "relative to real", "copy rate")
    rows = [heads] + [
        (f"{guidance:g}", *(_share(metrics, name) for name in _SHARES))
        for guidance, metrics in found.items()
    ]
    return "\n".join("".join(f"{cell:<25}" for cell in row).rstrip() for row in rows)


def _by_style(metrics: Mapping[str, float]) -> str:
    accuracy = _SHARES[0]
    lines = [f"real pictures: {_share(metrics, f'{accuracy}_real')}"]
    for style in STYLES:
        label = style.replace("-", "_")
        if f"{accuracy}_{label}" in metrics:
            lines.append(
                f"  {style:<12} {metrics[f'{accuracy}_{label}']:6.1%}, real "
                f"{metrics[f'{accuracy}_real_{label}']:6.1%}, "
                f"{metrics[f'{accuracy}_{label}_n']} captions"
            )
    return "\n".join(lines)


def _share(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "unknown"
    value, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_lo", "_hi"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"
