"""The demo's clip: edited by instruction, by each editor, and shown beside its source."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, ListConfig

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
from ..video import VideoEditor
from ..video.frames import scan
from ._editing import FrameBar
from ._generation import digest, model_files
from ._model import quiet
from ._numbers import read_number, whole_number

_CLIP = assets.ROOT / "clips" / "big_buck_bunny.mp4"
_CREDIT = "Source: Big Buck Bunny, © 2008 Blender Foundation, CC-BY 3.0; reduced and shortened."
_SHIPPED = ("emoji-edit", "emoji-edit-fast")


def check_clips(cfg: DictConfig) -> None:
    """Raises ValueError for settings of the clips that are not allowed."""
    whole_number(cfg, "clip_frames", 3)
    if cfg.clip_steps is not None:
        whole_number(cfg, "clip_steps", 1)
    for key in ("clip_guidance", "clip_image_guidance"):
        _number(cfg, key)
    if not isinstance(cfg.editors, ListConfig):
        raise ValueError(f"editors={cfg.editors}: must be a list of models, as in [emoji-edit]")


def make_clips(cfg: DictConfig, run: Run) -> list[ReportClip]:
    """One clip an instruction, the source and what each editor makes of it side by side.

    Those that are there are taken. None at all without instructions, or where the package holds no
    models for them. Raises ValueError or FileNotFoundError for an editor that is not there.
    """
    editors = [str(name) for name in cfg.editors]
    editors = [name for name in editors if name not in _SHIPPED or name in assets.model_names()]
    if not cfg.instructions or not editors:
        return []
    loaded = [_load(name, cfg, run) for name in editors]
    run.used_file(_CLIP)
    shown = []
    for number, instruction in enumerate(cfg.instructions):
        edited, costs = [], []
        for place, (pipe, weights) in enumerate(loaded):
            settings = {
                "instruction": str(instruction),
                "frames": cfg.clip_frames,
                "steps": cfg.clip_steps,
                "guidance": _number(cfg, "clip_guidance"),
                "image_guidance": _number(cfg, "clip_image_guidance"),
                "weights": weights,
            }
            path = run.dir / "clips" / f"{number}-{place}.mp4"
            cost = _kept(path, settings)
            if cost is None:
                cost = _make(pipe, path, settings)
            run.log({f"cost/clip{number}_editor{place}_{key}": cost[key] for key in cost})
            edited.append(path)
            costs.append(
                f"{Path(editors[place]).name} {metric(cost['seconds_per_frame'], 's')} and "
                f"{metric(cost['tflops_per_frame_all'] * 1e12, 'FLOP')} a frame"
            )
        path = run.dir / "clips" / f"{number}.mp4"
        _show(path, edited)  # in moments; one that is there may show other editors
        shown.append(ReportClip(path, f"“{instruction}”: {'; '.join(costs)}", _CREDIT))
    return shown


def _number(cfg: DictConfig, key: str) -> float | None:
    return None if cfg[key] is None else read_number(cfg, key)


def _load(name: str, cfg: DictConfig, run: Run) -> tuple[DiffusionPipeline, str]:
    """An editor, and a digest of its weights and the clip."""
    with quiet():
        device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipe = load(name, device=str(device))
    pipe.set_progress_bar_config(disable=True)
    files = model_files(pipe)
    for file in files:
        run.used_file(file)
    return pipe, digest([sha256(file) for file in [*files, _CLIP]])


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, float] | None:
    """What an edited clip that is there cost, if it was made so."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return found["cost"] if found["settings"] == settings and path.is_file() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _make(pipe: DiffusionPipeline, path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Edit the clip into `path`; returns what that cost, which is kept beside it."""
    start = time.perf_counter()
    with quiet(), CostTracker(pipe) as cost, FrameBar(path.name) as bar:
        VideoEditor(pipe).edit(
            _CLIP,
            path,
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
    kept = {"settings": settings, "cost": numbers}
    write_atomic(path.with_suffix(".json"), json.dumps(kept, indent=1))
    return numbers


def _show(path: Path, edited: list[Path]) -> None:
    """Write the clip and what was made of it next to each other."""
    clips = [open_clip(_CLIP), *map(open_clip, edited)]
    found = scan(clips[0], len(scan(clips[1], None))).timing
    timing = Timing(found.time_base, list(found.times), list(found.durations))
    write_clip(path, side_by_side(clips), timing)
