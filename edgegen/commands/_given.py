"""Pictures and videos of the user's own, scored as they are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from ..media.clips import is_video, open_clip
from ..media.pictures import PictureFiles, find_pictures
from ..metrics.quality.backbone import name_of
from ..metrics.quality.evaluation import Material, Score, judge
from ..metrics.quality.kept import backbone_digest
from ..runs.environment import sha256
from ..runs.record import Run, read_record
from ._prompts import read_prompts
from ._scores import backbones_of, by_default, move, scores_of, scores_table, write_scores

_CLIP = "no CLIP that could judge: give metrics.text.clip=FOLDER and prompts_file=FILE"
_NO_REFERENCE = "nothing to compare with: give reference=FOLDER"


def evaluate_given(cfg: DictConfig, run: Run) -> None:
    """Score `cfg.images`, a folder or a video, by `cfg.reference` and `cfg.prompts_file`.

    Every picture is read before anything is written: raises ValueError or FileNotFoundError, one
    line each, for one that is damaged, an empty folder, and for counts or sizes that differ where
    pairs were asked for.
    """
    for key in ("images", "reference"):
        if cfg[key] is not None and not str(cfg[key]).strip():
            raise ValueError(f"{key}=: give a folder, a picture or a video")
    kinds = {key: is_video(cfg[key]) for key in ("images", "reference") if cfg[key] is not None}
    if len(set(kinds.values())) > 1:
        raise ValueError("images, reference: must be two videos or two folders of pictures")
    video = kinds["images"]
    scores, notes = scores_of(cfg, "videos" if video else "pictures")
    material, names = (_videos if video else _folders)(cfg)
    missing = dict(material.missing)
    pairs = [name for name, score in scores.items() if "pairs" in score.needs]
    if "pairs" in missing and pairs and not (by_default() and _others(scores, missing)):
        raise ValueError(f"{missing['pairs']} (needed by {', '.join(pairs)})")
    if not any(all(need not in missing for need in each.needs) for each in scores.values()):
        raise ValueError("; ".join(sorted({missing[need] for need in missing})))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move(scores.values(), device)
    run.info(
        device=str(device),
        judges={name_of(each): backbone_digest(each) for each in backbones_of(scores.values())},
        **{f"{key}_sha256": _digest(cfg[key]) for key in kinds},
    )
    # No model drew these pictures.
    inputs = read_record(run.dir)["inputs"].items()
    run.info(seeds=None, inputs={k: v for k, v in inputs if not k.startswith("model.")})
    run.log({"run/pictures": len(material.pictures)})
    own = run.dir / "features"
    found = judge(scores, replace(material, own_cache=own))
    found.notes |= notes
    write_scores(run, found, {"file": names})
    print(scores_table(found))
    print(f"{len(material.pictures)} {'frames' if video else 'pictures'} of {cfg.images}")


def _digest(source: str) -> str:
    """SHA-256 over the files of a folder, in the order that they are taken in, or of one file."""
    files = [Path(source).expanduser()] if is_video(source) else find_pictures(source)
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def _others(scores: Mapping[str, Score], missing: Mapping[str, str]) -> bool:
    """Whether anything is left without pairs."""
    return any(all(need not in missing for need in each.needs) for each in scores.values())


def _folders(cfg: DictConfig) -> tuple[Material, list[str]]:
    pictures, sizes = read_folder("images", cfg.images)
    missing = {"clip": _CLIP, "judge": "concepts are known of a model's captions alone"}
    prompts = None
    if cfg.prompts_file is None:
        missing["prompts"] = "no prompts: give prompts_file=FILE, a line a picture"
    else:
        prompts = read_prompts(cfg)
        if len(prompts) != len(pictures):
            raise ValueError(
                f"prompts_file={cfg.prompts_file}: {len(prompts)} prompts for {len(pictures)} "
                "pictures; a line a picture is needed"
            )
    reference = None
    if cfg.reference is None:
        missing |= {"pairs": _NO_REFERENCE, "reference": _NO_REFERENCE}
    else:
        reference, others = read_folder("reference", cfg.reference)
        reason = _no_pairs(pictures.files, reference.files, sizes, others)
        if reason:
            missing["pairs"] = reason
    material = Material(
        pictures,
        prompts=prompts,
        pairs=None if "pairs" in missing else reference,
        reference=reference,
        missing=missing,
        cache=None if cfg.cache is None else Path(cfg.cache).expanduser() / "features",
    )
    return material, [file.name for file in pictures.files]


def _videos(cfg: DictConfig) -> tuple[Material, list[str]]:
    captions = None if cfg.prompts_file is None else read_prompts(cfg)
    if captions is not None and len(captions) != 2:
        raise ValueError(
            f"prompts_file={cfg.prompts_file}: {len(captions)} captions; a video takes two, of the "
            "source and of the edit"
        )
    frames = _frames("images", cfg.images)
    missing = {"clip": _CLIP, "prompts": "videos have no prompts", "judge": "videos have none"}
    if captions is None:
        missing["captions"] = "no captions: give prompts_file=FILE, a line for source and for edit"
    pairs = None
    if cfg.reference is None:
        missing |= {"pairs": "nothing to compare with: give reference=VIDEO"}
    else:
        pairs = _frames("reference", cfg.reference)
        if len(pairs) != len(frames):
            raise ValueError(
                f"images has {len(frames)} frames and reference {len(pairs)}: as many are needed"
            )
        if pairs.shape != frames.shape:
            raise ValueError(
                f"images has frames of {_pixels(frames[0])} and reference of {_pixels(pairs[0])}: "
                "one size is needed"
            )
    material = Material(
        frames,
        captions=None if captions is None else (captions[0], captions[1]),
        pairs=pairs,
        reference=pairs,
        missing=missing,
        cache=None if cfg.cache is None else Path(cfg.cache).expanduser() / "features",
        independent=False,
    )
    return material, [f"frame {number}" for number in range(len(frames))]


def read_folder(option: str, folder: str) -> tuple[PictureFiles, list[tuple[int, ...]]]:
    """The pictures in a folder and their shapes; every one is read once, to know that it can be."""
    try:
        pictures = PictureFiles(find_pictures(folder))
        return pictures, [picture.shape for picture in pictures]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{option}={error}") from error


def _frames(option: str, path: str) -> np.ndarray:
    try:
        frames = [frame.pixels for frame in open_clip(path)]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{option}={error}") from error
    if len(frames) < 2:
        raise ValueError(f"{option}={path}: two frames or more are needed, got {len(frames)}")
    return np.stack(frames)


def _no_pairs(
    files: Sequence[Path],
    references: Sequence[Path],
    sizes: Sequence[tuple[int, ...]],
    others: Sequence[tuple[int, ...]],
) -> str | None:
    if len(files) != len(references):
        return (
            f"images has {len(files)} pictures and reference {len(references)}: pairs need as many"
        )
    for file, own, size, other in zip(files, references, sizes, others, strict=True):
        if _name(file) != _name(own):
            return f"{file.name} and {own.name} stand side by side: pairs need the same names"
        if size != other:
            return (
                f"{file.name} has {size[1]} × {size[0]} pixels and its pair {own.name} "
                f"{other[1]} × {other[0]}: pairs need one size"
            )
    return None


def _name(file: Path) -> str:
    """A picture's name without its ending, and with numbers as numbers: 007 is 7."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), file.stem)


def _pixels(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} × {picture.shape[0]} pixels"
