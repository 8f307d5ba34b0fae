"""The demo's clip: edited by instruction, and shown beside its source."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig

from .. import assets
from ..api import load
from ..cost import CostTracker
from ..media.clip_writing import write_clip
from ..media.clips import Timing, open_clip
from ..media.side_by_side import side_by_side
from ..runs.atomic import write_atomic
from ..runs.environment import sha256
from ..runs.page import ReportClip, metric
from ..runs.record import Run
from ..video import Edited, VideoEditor
from ..video.frames import scan
from ._editing import FrameBar
from ._generation import digest, model_files
from ._model import quiet
from ._numbers import read_number, whole_number

_CLIP = assets.ROOT / "clips" / "big_buck_bunny.mp4"
_EDITOR = "emoji-edit"
_CREDIT = "Source: Big Buck Bunny, © 2008 Blender Foundation, CC-BY 3.0; reduced and shortened."


def check_clips(cfg: DictConfig) -> None:
    """Raises ValueError for settings of the clips that are not allowed."""
    whole_number(cfg, "clip_frames", 3)
    whole_number(cfg, "clip_steps", 1)
    for key in ("clip_guidance", "clip_image_guidance"):
        read_number(cfg, key)


def make_clips(cfg: DictConfig, run: Run) -> list[ReportClip]:
    """One clip an instruction, source and result side by side; those that are there are taken.

    None at all without instructions, or where the package does not hold its editor. Raises
    ValueError or FileNotFoundError for another editor that is not there.
    """
    name = str(cfg.editor)
    if not cfg.instructions or (name == _EDITOR and name not in assets.model_names()):
        return []
    with quiet():
        device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipe = load(name, device=str(device))
    pipe.set_progress_bar_config(disable=True)
    for file in [*model_files(pipe), _CLIP]:
        run.used_file(file)
    weights = digest([sha256(file) for file in [*model_files(pipe), _CLIP]])
    shown = []
    for number, instruction in enumerate(cfg.instructions):
        settings = {
            "instruction": str(instruction),
            "frames": cfg.clip_frames,
            "steps": cfg.clip_steps,
            "guidance": read_number(cfg, "clip_guidance"),
            "image_guidance": read_number(cfg, "clip_image_guidance"),
            "weights": weights,
        }
        path = run.dir / "clips" / f"{number}.mp4"
        cost = _kept(path, settings)
        if cost is None:
            cost = _make(pipe, path, settings)
        run.log({f"cost/clip{number}_{key}": value for key, value in cost.items()})
        per_frame = (
            f"{metric(cost['seconds_per_frame'], 's')} and "
            f"{metric(cost['tflops_per_frame_all'] * 1e12, 'FLOP')} a frame"
        )
        shown.append(ReportClip(path, f"“{instruction}”: {per_frame}", _CREDIT))
    return shown


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, float] | None:
    """What a clip that is there cost, if it was made so."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return found["cost"] if found["settings"] == settings and path.is_file() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _make(pipe: DiffusionPipeline, path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Edit the clip into a file beside `path`, and write `path`, source and result next to it."""
    result = path.with_name(f"{path.stem}-edited.mp4")
    start = time.perf_counter()
    with quiet(), CostTracker(pipe) as cost, FrameBar(path.name) as bar:
        made: Edited = VideoEditor(pipe).edit(
            _CLIP,
            result,
            settings["instruction"],
            steps=settings["steps"],
            guidance=settings["guidance"],
            image_guidance=settings["image_guidance"],
            limit=settings["frames"],
            progress=bar.update,
        )
        new = max(1, round(bar.done))
    numbers = {
        "seconds_per_frame": (time.perf_counter() - start) / new,
        "tflops_per_frame_all": cost.metrics(new)["cost/total_tflops_all"],
    }
    source, edited = open_clip(_CLIP), open_clip(result)
    found = scan(source, made.frames).timing
    timing = Timing(found.time_base, list(found.times), list(found.durations))
    write_clip(path, side_by_side([source, edited]), timing)
    kept = {"settings": settings, "cost": numbers}
    write_atomic(path.with_suffix(".json"), json.dumps(kept, indent=1))
    return numbers
