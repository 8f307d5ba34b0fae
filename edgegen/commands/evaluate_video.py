"""`python scripts/evaluate_video.py`: a video editor on clips whose truth is known."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..api import apply
from ..cost import CostTracker
from ..data.edit_pairs import CropSources, EmojiSources, Sources
from ..data.moving_stills import MovingStill
from ..media.clips import open_clip
from ..metrics.quality.bootstrap import bootstrap_mean
from ..metrics.quality.efflite0 import EffLite0
from ..metrics.quality.pictures import as_floats
from ..metrics.quality.text import load_clip
from ..metrics.video.flow import require_dis
from ..runs.atomic import write_atomic
from ..runs.looks import LOOKS, log_look
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ..sampling.generate import default_size
from ..video import VideoEditor
from ..video.frames import scan
from ._asked import JUDGE, embedded_judge
from ._domain import read_domain
from ._editing import crops_of, edit_scales, edit_steps
from ._filmed import Filmed, RealAsk, ToneAsk, real_asks, tone_asks, trained_subjects
from ._generation import model_files, model_settings
from ._main import command
from ._methods import methods_of
from ._model import quiet
from ._moving import Ask, AttentionProbe, Shown, anchors_of, asks_of, scores_of
from ._numbers import flag, whole_number
from ._sampling import read_text
from .edit import load_editor

AnyAsk = Ask | ToneAsk | RealAsk
_COLUMNS = 6  # frames of a clip in results.png
_CLIPS = 1_000_003  # between the seeds of clips, so that those of two runs hardly meet


@command("evaluate_video", free_text=("judge",))
def main(cfg: DictConfig, run: Run) -> None:
    """Edit the clips, measure each, and give means with intervals over subjects."""
    flag(cfg, "log_looks")
    for key, least in (("n", 1), ("frames", 2), ("chunk", 1), ("resamples", 1)):
        whole_number(cfg, key, least)
    for key in ("n_ambiguous", "n_tone", "seed", "attention", "shown"):
        whole_number(cfg, key, 0)
    if cfg.split not in ("dev", "test"):
        raise ValueError(f"split={cfg.split}: allowed are dev, test")
    pipe = load_editor(cfg)
    anchors: Any = cfg.anchors
    if OmegaConf.is_config(anchors):
        anchors = OmegaConf.to_container(anchors)
    editor = VideoEditor(pipe, anchors, own=flag(cfg, "own"), chunk=cfg.chunk)
    edit = {
        "steps": edit_steps(cfg),
        **edit_scales(cfg, pipe),
        "seed": cfg.seed,  # each clip's own is made of it and its place
        "shared_noise": flag(cfg, "shared_noise"),
    }
    size = _size(cfg, pipe)
    judges: list[nn.Module] = [EffLite0().to(pipe.device)]
    given = read_text(cfg, "judge")
    if given is not None or JUDGE.is_dir():
        with quiet():
            judge = embedded_judge() if given is None else load_clip(given)
        judges.append(judge.to(pipe.device))
    asks = _asks(cfg, size)
    methods = methods_of(cfg)
    settings = {
        **model_settings(cfg, pipe),
        "anchors": anchors,
        "own": cfg.own,
        "chunk": cfg.chunk,
        "frames": cfg.frames,
        "size": size,
        **edit,
    }
    with apply(pipe, methods):
        editor.check()
        editor.anchors.scenes(cfg.frames, [0.0] * cfg.frames)  # too many anchors, or none there
        run.info(device=str(pipe.device), seeds=[cfg.seed], settings=settings)
        for file in [*model_files(pipe), EffLite0.weights_file()]:
            run.used_file(file)
        work = _Work(editor, run.dir / "clips", settings, edit)
        rows: list[dict[str, Any]] = []
        shown: list[tuple[Image.Image, str]] = []
        moving = sum(isinstance(ask, Ask) for ask in asks)  # the first ones
        for place, ask in enumerate(tqdm(asks, desc="clips", unit="clip")):
            clip = ask.clip(cfg.frames, size)
            edited = work.frames(place, clip, ask)
            row = scores_of(clip, edited, ask.group, judges)
            if _chosen(place, moving, cfg.attention):
                row |= work.attention(place, clip, (size, size))
            rows.append({"prompt": f"{ask.subject}: {clip.instruction}", "seed": cfg.seed} | row)
            if _chosen(place, len(asks), cfg.shown):
                shown += _cells(clip, edited)
    names = list(dict.fromkeys(name for row in rows for name in row if "/" in name))
    subjects = np.array([ask.subject for ask in asks])
    for name in names:
        values = np.array([row.get(name, np.nan) for row in rows])
        known = np.isfinite(values)
        found = bootstrap_mean(values[known], subjects[known], resamples=cfg.resamples)
        run.log({name: found.value, f"{name}_n": found.n})
        ends = {f"{name}_lo": found.low, f"{name}_hi": found.high, f"{name}_sd": found.sd}
        if len(set(subjects[known])) > 1:
            run.log(ends)
        else:
            for end in ends:
                run.note(end, "of one subject: there is nothing to draw an interval from")
    work.log(run)
    write_atomic(run.dir / "scores.csv", _csv(rows, names))
    if shown:
        write_png(run.dir / "results.png", grid(shown, _COLUMNS, least=64), settings)
    if cfg.log_looks and cfg.split == "test":
        _log_look(cfg, settings, len(asks))
    for name in names:
        value = bootstrap_mean(np.array([row[name] for row in rows if name in row])).value
        print(f"{name:<36}{value:.4f}")


class _Work:
    """The clips under edit: made once, kept as folders of pictures."""

    def __init__(
        self, editor: VideoEditor, folder: Path, settings: dict[str, Any], edit: dict[str, Any]
    ) -> None:
        self._editor, self._folder, self._settings, self._edit = editor, folder, settings, edit
        self._cost: dict[str, float] = {}
        self._times: list[float] = []  # seconds a frame, of each clip made

    def frames(self, place: int, clip: MovingStill | Filmed, ask: AnyAsk) -> Tensor:
        """The edited clip (T, 3, H, W) in [0, 1]; edited now, unless it is there."""
        output, note = self._folder / f"{place:04d}", self._folder / f"{place:04d}.json"
        seen = hashlib.sha256(clip.source.numpy().tobytes()).hexdigest()
        wanted = json.dumps([self._settings, seen, clip.instruction, *ask.key])
        if not (note.is_file() and note.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(output, ignore_errors=True)
            shown = Shown(clip, f"{place} {clip.name}")
            with quiet():
                self._make(shown, output, clip.instruction, self._seed(place))
            write_atomic(note, wanted)
        return as_floats(frame.pixels for frame in open_clip(output))

    def _seed(self, place: int) -> int:
        """Another noise for each clip, the same in all rows: one draw must not decide for all."""
        return int(self._edit["seed"]) + _CLIPS * place

    def attention(self, place: int, clip: MovingStill, size: tuple[int, int]) -> dict[str, float]:
        """Where its attention lands: the clip is edited once more, and thrown away."""
        shown = Shown(clip, f"attention {clip.name}")
        found = scan(shown)
        scenes = self._editor.anchors.scenes(len(found), found.changes)
        factor = self._editor.pipe.vae_scale_factor
        probe = AttentionProbe(clip, anchors_of(scenes), (size[0] // factor, size[1] // factor))
        output = self._folder / "attention"
        shutil.rmtree(output, ignore_errors=True)  # of a run that was killed
        with quiet():
            self._run(shown, output, clip.instruction, self._seed(place), probe=probe)
        shutil.rmtree(output)
        return probe.scores()

    def log(self, run: Run) -> None:
        """What a frame costs."""
        if not self._times:
            run.note("cost/seconds_per_frame", "all clips were there: nothing was made")
            return
        # The first was counted, which takes its time.
        run.log({"cost/seconds_per_frame": float(np.median(self._times[1:] or self._times))})
        run.log(self._cost)

    def _make(self, shown: Shown, output: Path, instruction: str, seed: int) -> None:
        start = time.perf_counter()
        if self._times:
            made = self._run(shown, output, instruction, seed)
        else:  # the clips are of one size: what a frame costs is the same in all
            with CostTracker(self._editor.pipe) as cost:
                made = self._run(shown, output, instruction, seed)
            self._cost = cost.metrics(made)
        self._times.append((time.perf_counter() - start) / made)

    def _run(self, shown: Shown, output: Path, instruction: str, seed: int, **more: Any) -> int:
        resolution = max(shown.frames.shape[1:3])
        made = self._editor.edit(
            shown,
            output,
            instruction,
            resolution=resolution,
            **{**self._edit, "seed": seed},
            **more,
        )
        return made.frames


def _asks(cfg: DictConfig, size: int) -> list[AnyAsk]:
    emoji = read_domain(cfg, tones=True)
    sources: dict[str, Sources] = {"emoji": EmojiSources(emoji, "concepts", size)}
    if cfg.crops is not None:
        sources["natural"] = CropSources(crops_of(cfg, size))
    asks: list[AnyAsk] = []
    for kind, each in sources.items():
        asks += asks_of(each, kind, cfg.split, cfg.n, ambiguous=False)
        if cfg.n_ambiguous:
            asks += asks_of(each, kind, cfg.split, cfg.n_ambiguous, ambiguous=True)
    if cfg.n_tone:
        asks += tone_asks(cfg.split, cfg.n_tone, size, trained_subjects(emoji))
    if not isinstance(cfg.real, ListConfig) or not all(isinstance(e, str) for e in cfg.real):
        raise ValueError(f"real={cfg.real}: must be a list of files")
    asks += real_asks(list(cfg.real))
    if not asks:
        raise ValueError(f"split={cfg.split}: no pair in it; allowed are dev, test")
    if cfg.n_tone or cfg.real:
        require_dis()
    return asks


def _chosen(place: int, count: int, most: int) -> bool:
    """Whether `place` is among at most `most` places spread evenly over `count`."""
    return place in np.linspace(0, count - 1, min(most, count)).round()


def _size(cfg: DictConfig, pipe: Any) -> int:
    size = default_size(pipe)[0] if cfg.size is None else whole_number(cfg, "size", 16)
    if size % pipe.vae_scale_factor:
        raise ValueError(f"size={size}: must be a multiple of {pipe.vae_scale_factor} pixels")
    return size


def _cells(clip: MovingStill | Filmed, edited: Tensor) -> list[tuple[Image.Image, str]]:
    """Source, nearest target and edit of a few frames, a row each."""
    rows = {clip.instruction: clip.source}
    if len(clip.targets):
        errors = (clip.targets - edited).square().mean((1, 2, 3, 4))
        rows["target"] = clip.targets[int(errors.argmin())]
    rows["edit"] = edited
    times = np.linspace(0, len(edited) - 1, _COLUMNS).round().astype(int)
    return [
        (Image.fromarray((frames[t] * 255).byte().permute(1, 2, 0).numpy()), f"{name} {t}")
        for name, frames in rows.items()
        for t in times
    ]


def _csv(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "seed", *names], lineterminator="\n", restval="nan")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _log_look(cfg: DictConfig, settings: dict[str, Any], clips: int) -> None:
    logged = ("anchors", "own", "shared_noise", "steps", "guidance", "image_guidance", "seed")
    what = {"command": "evaluate_video", "model": Path(settings["model"]).name, "clips": clips}
    log_look(
        what | {key: settings[key] for key in logged}, LOOKS.with_name("test_looks_videos.csv")
    )
