"""`python scripts/edit_accuracy.py`: does an instruction editor do what it is told?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionInstructPix2PixPipeline
from omegaconf import DictConfig
from PIL import Image

from ..api import apply
from ..data.edit_pairs import CropSources, EmojiSources, Sources
from ..data.held_out_pairs import held_out_pairs
from ..metrics.quality.edit_score import EditScore
from ..metrics.quality.efflite0 import EffLite0
from ..pipelines.checkpoints import one_line
from ..pipelines.parts import autoencoder
from ..runs.atomic import write_atomic
from ..runs.finished import Row, to_csv
from ..runs.looks import LOOKS, log_look
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ..sampling.generate import default_size
from ._domain import read_domain
from ._edited import Ask, asks_of, draw_edits, score
from ._editing import crops_of, edit_scales, edit_steps
from ._generation import model_files, model_settings
from ._main import command
from ._methods import methods_of
from ._model import load_model
from ._numbers import flag, whole_number
from ._sampling import read_text

_BACKBONE = "efflite0"
_SHARES = ("closed_psnr", f"closed_{_BACKBONE}", f"covered_{_BACKBONE}", "followed")
_SAMPLING = ("scheduler", "steps", "guidance", "image_guidance", "seed")
_LOGGED = ("model_sha256", "vae", "renderer", *_SAMPLING)


@command("edit_accuracy")
def main(cfg: DictConfig, run: Run) -> None:
    """Edit held-out pictures, judge them group by group, and show a random part of each."""
    flag(cfg, "log_looks")
    for key in ("n", "batch_size", "resamples"):
        whole_number(cfg, key, 1)
    for key in ("n_ambiguous", "seed", "shown"):
        whole_number(cfg, key, 0)
    if cfg.split not in ("dev", "test"):
        raise ValueError(f"split={cfg.split}: allowed are dev, test")
    pipe = _load(cfg)
    sampling = {"steps": edit_steps(cfg), **edit_scales(cfg, pipe)}
    renderer = _renderer(cfg, pipe)
    groups = _groups(cfg, pipe)
    methods = methods_of(cfg)
    settings = {
        **model_settings(cfg, pipe),
        **sampling,
        "seed": cfg.seed,
    }
    judge = EffLite0().to(pipe.device)
    found: dict[str, dict[str, float]] = {}
    rows: list[Row] = []
    with apply(pipe, methods):
        run.info(device=str(pipe.device), seeds=[cfg.seed], settings=settings)
        for file in [*model_files(pipe), EffLite0.weights_file()]:
            run.used_file(file)
        for group, asks in groups.items():
            folder = run.dir / "images" / group
            edits = draw_edits(pipe, folder, asks, settings, cfg.batch_size, group)
            scored, names = score(renderer, judge, asks, edits, f"judging {group}")
            found[group] = scored.metrics(group, _BACKBONE, cfg.resamples)
            run.log(found[group])
            rows += _rows(scored, asks, group, cfg.seed)
            if cfg.shown:
                sheet = _sheet(asks, edits, names, scored.followed, cfg.shown)
                write_png(run.dir / f"results_{group}.png", sheet, {})
    write_atomic(run.dir / "scores.csv", to_csv(rows))
    if cfg.log_looks and cfg.split == "test":
        seen = {"vae": cfg.model.get("vae") or "", "renderer": cfg.renderer or ""}
        _log_look(settings | seen, found)
    print(_table(found))
    print(f"{cfg.split} half of the held-out subjects; 95 % intervals over subjects")


def _load(cfg: DictConfig) -> DiffusionPipeline:
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_model(cfg, str(device))
    if not isinstance(pipe, StableDiffusionInstructPix2PixPipeline):
        raise ValueError(
            f"model={cfg.model.source}: {type(pipe).__name__} is no instruction editor; give "
            "one of StableDiffusionInstructPix2PixPipeline"
        )
    return pipe


def _renderer(cfg: DictConfig, pipe: DiffusionPipeline) -> AutoencoderKL:
    """The autoencoder that what an edit is judged by goes through."""
    given = read_text(cfg, "renderer")
    if given is not None:
        try:
            return autoencoder(given).to(pipe.device)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise type(error)(f"renderer={given}: {one_line(error)}") from error
    if not isinstance(pipe.vae, AutoencoderKL):
        raise ValueError(
            f"renderer: the model has an {type(pipe.vae).__name__}; give a model or folder with an "
            "AutoencoderKL, the same for all models that are compared"
        )
    return pipe.vae


def _groups(cfg: DictConfig, pipe: DiffusionPipeline) -> dict[str, list[Ask]]:
    size = default_size(pipe)[0] if cfg.size is None else whole_number(cfg, "size", 32)
    emoji = read_domain(cfg, tones=True)
    sources: dict[str, Sources] = {"emoji": EmojiSources(emoji, "concepts", size)}
    if cfg.crops is not None:
        sources["natural"] = CropSources(crops_of(cfg, size))
    groups: dict[str, list[Ask]] = {}
    for kind, each in sources.items():
        pairs = {
            kind: held_out_pairs(each, cfg.split, cfg.n),
            f"{kind}_ambiguous": held_out_pairs(each, cfg.split, cfg.n_ambiguous, ambiguous=True),
        }
        if not pairs[kind]:
            raise ValueError(f"split={cfg.split}: no {kind} pair in it; allowed are dev, test")
        groups |= {group: asks_of(each, found) for group, found in pairs.items() if found}
    return groups


def _rows(scored: EditScore, asks: Sequence[Ask], group: str, seed: int) -> list[Row]:
    """What each edit gained, for `scores.csv`."""
    gains = scored.gains(group, _BACKBONE)
    return [
        {
            "prompt": f"{ask.source.subject}: {ask.pair.index}: {ask.pair.instruction}",
            "seed": seed,
            **{name: float(values[place]) for name, values in gains.items()},
        }
        for place, ask in enumerate(asks)
    ]


def _log_look(settings: Mapping[str, Any], found: Mapping[str, Mapping[str, float]]) -> None:
    for group, metrics in found.items():
        log_look(
            {
                "command": "edit_accuracy",
                "model": Path(settings["model"]).name,
                **{key: settings[key] for key in _LOGGED},
                "group": group,
                "pairs": metrics[f"quality/pairs_{group}"],
                **{name: f"{metrics[f'quality/{name}_{group}']:.4f}" for name in _SHARES},
            },
            LOOKS.with_name("test_looks_edits.csv"),
        )


def _sheet(
    asks: Sequence[Ask],
    edits: Sequence[np.ndarray],
    names: Sequence[str],
    followed: np.ndarray,
    shown: int,
) -> Image.Image:
    """The first edits, which are random ones: source, true target, edit with a tick if right."""
    cells: list[tuple[Image.Image, str]] = []
    for ask, edit, name, right in list(zip(asks, edits, names, followed, strict=True))[:shown]:
        cells += [
            (Image.fromarray(ask.source.picture), ask.pair.text),
            (Image.fromarray(ask.source.target(name)), "target"),
            (Image.fromarray(edit), "✓ edit" if right else "✗ edit"),
        ]
    return grid(cells, 9, least=96)


def _table(found: Mapping[str, Mapping[str, float]]) -> str:
    heads = (
        "group",
        "gap closed, PSNR",
        f"gap closed, {_BACKBONE}",
        f"way covered, {_BACKBONE}",
        "instruction followed",
    )
    rows = [heads] + [
        (group, *(_share(metrics, f"quality/{name}_{group}") for name in _SHARES))
        for group, metrics in found.items()
    ]
    return "\n".join("".join(f"{cell:<26}" for cell in row).rstrip() for row in rows)


def _share(metrics: Mapping[str, float], name: str) -> str:
    value, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_lo", "_hi"))
    return "unknown" if np.isnan(value) else f"{value:.1f} % [{low:.1f}, {high:.1f}]"
