"""`python scripts/edit.py`: a video edited by an instruction, and what it cost."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, OmegaConf

from ..api import apply
from ..cost import CostTracker
from ..runs.environment import sha256
from ..runs.record import Run
from ..sampling.generate import cut_off
from ..video import Edited, VideoEditor
from ._editing import FrameBar, edit_scales, edit_steps
from ._generation import model_files
from ._main import command
from ._methods import method_settings, methods_of
from ._model import load_model, quiet
from ._numbers import flag, read_number, whole_number
from ._sampling import read_text


@command("edit", free_text=("video", "instruction", "output", "negative_prompt"))
def main(cfg: DictConfig, run: Run) -> None:
    """Edit the video that the settings name, and keep the record."""
    source, instruction = _required(cfg, "video"), _required(cfg, "instruction")
    if cfg.output is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("output is required where several processes share the work")
    output = _output(cfg, run, Path(source).expanduser())
    pipe = load_editor(cfg)
    methods = methods_of(cfg)
    anchors: Any = cfg.anchors
    if OmegaConf.is_config(anchors):
        anchors = OmegaConf.to_container(anchors)
    editor = VideoEditor(
        pipe,
        anchors,
        own=flag(cfg, "own"),
        schedule=str(cfg.schedule),
        chunk=whole_number(cfg, "chunk", 1),
    )
    settings: dict[str, Any] = {
        "resolution": None if cfg.resolution is None else whole_number(cfg, "resolution", 1),
        "limit": None if cfg.preview is None else whole_number(cfg, "preview", 1),
        "rate": None if cfg.rate is None else read_number(cfg, "rate"),
        "audio": flag(cfg, "audio"),
        "codec": read_text(cfg, "codec"),
        "resume": flag(cfg, "resume"),
        "steps": edit_steps(cfg),
        **edit_scales(cfg, pipe),
        "strength": read_number(cfg, "strength"),
        "negative": read_text(cfg, "negative_prompt") or "",
        "seed": whole_number(cfg, "seed", 0),
        "shared_noise": flag(cfg, "shared_noise"),
    }
    attached = method_settings(cfg)
    if lost := cut_off(pipe, instruction):
        print(f"the instruction is too long; cut off: {lost[:200]!r}", file=sys.stderr)
    bar = FrameBar(None, run.start, silent=not _first_process())
    start = time.perf_counter()
    with apply(pipe, methods), CostTracker(pipe) as cost, quiet(), bar:
        made = _edit(editor, source, output, instruction, attached, bar, settings)
    _record(cfg, run, pipe, made, time.perf_counter() - start, bar, cost)
    if _first_process():
        print(f"{made.frames} frames of {made.width}×{made.height} in {made.output}")


def _edit(
    editor: VideoEditor,
    source: str,
    output: Path,
    instruction: str,
    attached: dict[str, Any],
    bar: FrameBar,
    settings: dict[str, Any],
) -> Edited:
    try:
        return editor.edit(
            source, output, instruction, settings=attached, progress=bar.update, **settings
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"output={output}: the disk is full; free some space and go on with resume=true"
            ) from error
        raise


def _record(
    cfg: DictConfig,
    run: Run,
    pipe: DiffusionPipeline,
    made: Edited,
    seconds: float,
    bar: FrameBar,
    cost: CostTracker,
) -> None:
    source = Path(cfg.video).expanduser()
    run.info(
        device=str(pipe.device),
        seeds=[cfg.seed],
        output={"path": str(made.output), "anchors": made.anchors, "schedule": made.schedule},
    )
    for file in [*model_files(pipe), *([source] if source.is_file() else [])]:
        run.used_file(file)
    if made.output.is_file():
        run.info(output_sha256=sha256(made.output))
    run.log(
        {
            "run/frames": made.frames,
            "run/frames_new": bar.done,
            "run/anchors": sum(map(len, made.anchors)),
            "run/scenes": len(made.anchors),
            "run/guidance_branches": made.branches,
            "run/evaluations": made.evaluations,
            "run/processes": made.processes,
            "cost/seconds": seconds,
        }
    )
    if bar.done < 0.5:
        for name in ("seconds_per_frame", "total_tflops_all", "total_tflops_conv_linear"):
            run.note(f"cost/{name}", "all frames were there: nothing was made")
        return
    everyone = made.frames * bar.done / bar.total  # the other processes' too
    run.log({"cost/seconds_per_frame": seconds / everyone})
    run.log(cost.metrics(max(1, round(bar.done))))


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun, as is LOCAL_RANK


def load_editor(cfg: DictConfig) -> DiffusionPipeline:
    """The pipeline that the settings name, on their device."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = cfg.device or (own if torch.cuda.is_available() else "cpu")
    return load_model(cfg, str(device))


def _output(cfg: DictConfig, run: Run, source: Path) -> Path:
    given = read_text(cfg, "output")
    if given is not None:
        if not given.strip():
            raise ValueError("output: is empty; give a file or a new folder")
        return Path(given).expanduser()
    return run.folder / f"edited{source.suffix if not source.is_dir() else ''}"


def _required(cfg: DictConfig, key: str) -> str:
    value = read_text(cfg, key)
    if value is None:
        raise ValueError(f"{key} is required: give {key}=...")
    return value
