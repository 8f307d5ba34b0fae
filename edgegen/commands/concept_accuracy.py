"""`python scripts/concept_accuracy.py`: does a model draw what it is asked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, ListConfig
from PIL import Image, ImageOps
from tqdm import tqdm

from ..api import apply
from ..data.emoji import STYLES
from ..media.pictures import read_picture
from ..metrics.quality.efflite0 import EffLite0, picture_features
from ..runs.looks import log_look
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ._asked import read_asked, read_seeds
from ._domain import AskedPictures, RealPictures
from ._generation import (
    draw,
    load_pipeline,
    model_files,
    pictures_of,
    report_cuts,
    sampling_settings,
)
from ._main import command
from ._methods import methods_of
from ._model import quiet
from ._numbers import flag, whole_number
from ._sampling import guidance_scale

_SHARES = ("quality/concept_accuracy", "quality/concept_accuracy_relative", "quality/copy_rate")


@command("concept_accuracy")
def main(cfg: DictConfig, run: Run) -> None:
    """Draw the asked captions, judge the pictures, and write the figures and a random sheet."""
    flag(cfg, "log_looks")
    for key in (
        "steps",
        "batch_size",
        "nearest",
        "resamples",
        *(["n"] if cfg.n is not None else []),
    ):
        whole_number(cfg, key, 1)
    whole_number(cfg, "shown", 0)
    seeds = read_seeds(cfg)
    asked = read_asked(cfg)
    pipe = load_pipeline(cfg, cfg.steps)
    guidances = _guidances(cfg, pipe)
    emoji, asks = asked.emoji, asked.places
    assert emoji is not None
    real = RealPictures.of(emoji, cfg.cache)

    settings = sampling_settings(cfg, pipe, cfg.steps, guidances[0])
    methods = methods_of(cfg)
    with apply(pipe, methods):
        run.info(device=str(pipe.device), seeds=seeds, settings={**settings, "guidance": guidances})
        for file in [*model_files(pipe), EffLite0.weights_file()]:
            run.used_file(file)
        run.log({"run/captions": len(asks), "run/captions_unanswerable": asked.unanswerable})
        with quiet():
            report_cuts(pipe, asked.prompts, run)

        made, scores, found = {}, {}, {}
        for guidance in guidances:
            pictures = pictures_of(
                run.dir / "images" / f"guidance-{guidance:g}",
                list(zip(asked.prompts, asked.numbers, strict=True)),
                seeds,
                {**settings, "guidance": guidance},
            )
            draw(pipe, pictures, cfg.batch_size, description=f"guidance {guidance:g}")
            made[guidance] = [each.file for each in pictures]
            features = picture_features(
                EffLite0().to(pipe.device), map(read_picture, tqdm(made[guidance], desc="judging"))
            )
            judge = AskedPictures(real, asks)
            scores[guidance] = judge.score(features, len(seeds), cfg.nearest)
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
        + (
            f"; {asked.unanswerable} more left out that no real picture answers"
            if asked.unanswerable
            else ""
        )
    )
    if len(guidances) > 1:
        print(f"best guidance: {best:g}")


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
        found.append(guidance_scale(one, pipe))
    return list(dict.fromkeys(found))


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
            "seeds": " ".join(map(str, read_seeds(cfg))),
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
        image = Image.fromarray(read_picture(files[number]))
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
