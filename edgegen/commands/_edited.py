"""Held-out pictures edited by a model, beside everything that an edit is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image, ImageFilter
from tqdm import tqdm

from ..data.edit_pairs import Source, Sources
from ..data.held_out_pairs import Pair
from ..data.instructions import EDITS, family
from ..media.pictures import read_picture
from ..metrics.quality.edit_score import EditScore, pointed_at
from ..metrics.quality.efflite0 import EffLite0, picture_features
from ..metrics.quality.paired import feature_errors
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.reference import psnr
from ..runs.pictures import picture_name, read_settings, write_png
from ..sampling.generate import noise_generator
from ..sampling.guidance import edit_guidance
from ._model import quiet

_BATCH = 32  # of the autoencoder: bits depend on the shape of a batch


@dataclass(frozen=True)
class Ask:
    """One edit to make: of `source`, in the words of `pair`, as one of the edits `answers`.

    `number` is what its noise is drawn by, together with a seed; it depends on the pair alone.
    """

    pair: Pair
    source: Source
    answers: tuple[str, ...]
    number: int


def asks_of(sources: Sources, pairs: Sequence[Pair]) -> list[Ask]:
    """What the pairs ask for."""
    found = []
    for pair in pairs:
        source = sources.source(pair.index, None)
        text = f"{source.kind}:{source.subject}:{pair.index}:{pair.instruction}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        found.append(Ask(pair, source, tuple(source.possible(pair.instruction)), number))
    return found


def draw_edits(
    pipe: DiffusionPipeline,
    folder: Path,
    asks: Sequence[Ask],
    settings: Mapping[str, Any],
    batch_size: int,
    description: str,
) -> list[np.ndarray]:
    """The edits, (S, S, 3) uint8 each; those whose files are there already are read.

    `settings` name all that an edit depends on beside the ask, among them `steps`, `guidance`,
    `image_guidance` and `seed`. A batch with one picture missing is made whole.
    """
    files = [folder / picture_name(place) for place in range(len(asks))]
    own = [
        {
            "instruction": ask.pair.text,
            "index": ask.number,
            "source_sha256": hashlib.sha256(ask.source.picture.tobytes()).hexdigest(),
            **settings,
        }
        for ask in asks
    ]
    missing = [read_settings(file) != each for file, each in zip(files, own, strict=True)]
    with tqdm(total=sum(missing), desc=description, unit="edit", disable=not any(missing)) as bar:
        for start in range(0, len(asks), batch_size):
            places = range(start, min(start + batch_size, len(asks)))
            if not any(missing[place] for place in places):
                continue
            images = _edited(pipe, [asks[place] for place in places], settings)
            for place, image in zip(places, images, strict=True):
                if missing[place]:
                    write_png(files[place], image, own[place])
                    bar.update()
    return [read_picture(file) for file in files]


def _edited(
    pipe: DiffusionPipeline, asks: Sequence[Ask], settings: Mapping[str, Any]
) -> list[Image.Image]:
    scales = edit_guidance(pipe, settings["guidance"], settings["image_guidance"])
    with quiet(), torch.inference_mode(), scales as given:
        return pipe(
            prompt=[ask.pair.text for ask in asks],
            image=[Image.fromarray(ask.source.picture) for ask in asks],
            num_inference_steps=settings["steps"],
            **given,
            generator=[noise_generator(settings["seed"], ask.number) for ask in asks],
        ).images


@torch.inference_mode()
def rendered(vae: AutoencoderKL, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures as an autoencoder gives them back, (S, S, 3) uint8 each."""
    found: list[np.ndarray] = []
    for start in range(0, len(pictures), _BATCH):
        part = list(pictures[start : start + _BATCH])
        part += [part[-1]] * (_BATCH - len(part))
        tensor = as_floats(part).to(vae.device, vae.dtype) * 2 - 1
        latents = vae.encode(tensor).latent_dist.mode()
        back = (vae.decode(latents).sample.float().cpu() / 2 + 0.5).clamp(0, 1)
        found += [np.asarray(each) for each in (back * 255).round().byte().permute(0, 2, 3, 1)]
    return found[: len(pictures)]


def baselines(source: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """What must be beaten: a flat picture of the target's mean colour, the source blurred (by a
    24th of its side), and the source with each channel's mean moved to the target's."""
    mean = target.mean((0, 1))
    blurred = Image.fromarray(source).filter(ImageFilter.GaussianBlur(len(source) / 24))
    moved = np.clip(source + (mean - source.mean((0, 1))), 0, 255)
    return {
        "mean_colour": np.broadcast_to(mean.round(), source.shape).astype(np.uint8),
        "blur": np.asarray(blurred),
        "matched_colour": moved.round().astype(np.uint8),
    }


def score(
    renderer: AutoencoderKL,
    judge: EffLite0,
    asks: Sequence[Ask],
    edits: Sequence[np.ndarray],
    description: str,
) -> tuple[EditScore, list[str]]:
    """Judge edits; also the true target of each: of several, the one that is nearest in PSNR.

    Direction: the edit's features minus those of the renderer's rendering of the source, against
    the true targets' minus the source's, for all unambiguous edits of that source. So what an
    autoencoder does to every picture hardly counts. The best that can be is the same of the
    renderer's rendering of the true target. Only edits judged through one renderer are comparable.
    """
    names = [_nearest(ask, edit) for ask, edit in zip(asks, edits, strict=True)]
    shown: dict[str, list[np.ndarray]] = {"target": [], "source": [], "edit": list(edits)}
    for ask, name in zip(asks, names, strict=True):
        shown["target"].append(ask.source.target(name))
        shown["source"].append(ask.source.picture)
        for kind, picture in baselines(ask.source.picture, shown["target"][-1]).items():
            shown.setdefault(kind, []).append(picture)
    shown["autoencoder"] = rendered(renderer, shown["target"])
    features = {kind: picture_features(judge, pictures) for kind, pictures in shown.items()}
    origins = picture_features(judge, rendered(renderer, shown["source"]))
    truth = as_floats(shown["target"])
    decibels, distances = {}, {}
    for kind in [kind for kind in shown if kind != "target"]:
        decibels[kind] = psnr(as_floats(shown[kind]), truth).numpy()
        distances[kind] = feature_errors(features[kind], features["target"]).numpy()
    options = [_options(ask.source) for ask in asks]
    candidates = picture_features(
        judge,
        (
            ask.source.target(name)
            for ask, own in zip(tqdm(asks, desc=description, unit="edit"), options, strict=True)
            for name in own
        ),
    ).split([len(own) for own in options])
    right: dict[str, list[bool]] = {"edit": [], "autoencoder": []}
    for place, (ask, own) in enumerate(zip(asks, options, strict=True)):
        known = candidates[place] - features["source"][place]
        for kind, kept in right.items():
            direction = features[kind][place] - origins[place]
            kept.append(own[pointed_at(direction, known)] in ask.answers)
    return EditScore(
        psnr=decibels,
        features=distances,
        apart=feature_errors(origins, features["autoencoder"]).numpy(),
        left=feature_errors(features["edit"], features["autoencoder"]).numpy(),
        followed=np.array(right["edit"]),
        followed_truth=np.array(right["autoencoder"]),
        chance=np.array(
            [len(ask.answers) / len(own) for ask, own in zip(asks, options, strict=True)]
        ),
        subjects=np.array([ask.source.subject for ask in asks]),
        families=np.array([family(name) for name in names]),
    ), names


def _options(source: Source) -> list[str]:
    return [name for name in EDITS if name in source.targets and source.changes(name)]


def _nearest(ask: Ask, edit: np.ndarray) -> str:
    errors = {name: _error(ask.source.target(name), edit) for name in ask.answers}
    return min(errors, key=errors.__getitem__)


def _error(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.square(first.astype(np.float32) - second).mean())
