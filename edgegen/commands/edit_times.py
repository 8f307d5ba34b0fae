"""`python scripts/edit_times.py models=[…]`: what a frame takes in several editors, by part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..cost import CostTracker
from ..cost.latency import Reading, interleaved, paired_ratio, series, timing
from ..cost.stopwatch import Stopwatch, wall_clock
from ..cost.summary import text_table
from ..cost.tracker import components_of, parts_of
from ..runs.atomic import write_atomic
from ..runs.finished import Row, to_csv
from ..runs.memory import network_call, peak_memory
from ..runs.record import Run
from ..video import VideoEditor
from ._editing import edit_scales
from ._filmed import Filmed, real_clip
from ._generation import model_files
from ._main import command
from ._model import quiet
from ._moving import Shown
from ._numbers import flag, whole_number
from .edit import load_editor

PARTS = {"vae.encoder": "vae_encoder", "unet": "unet", "vae.decoder": "vae_decoder"}
_KEYS = {"name", "source", "steps", "vae"}
_INSTRUCTION = "make it night"


@dataclass
class _Timed:
    """An editor under test, and the seconds that each part has taken so far."""

    editor: VideoEditor
    steps: int
    scales: dict[str, Any]
    load: dict[str, Any]
    modules: dict[str, Any]
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS.values(), 0.0))
    row: Row = field(default_factory=dict)


@command("edit_times")
def main(cfg: DictConfig, run: Run) -> None:
    """Edit the clip with each model in turn; write `results.csv`, a row a model."""
    for key, least in (("frames", 2), ("size", 16), ("chunk", 1), ("rounds", 1), ("seed", 0)):
        whole_number(cfg, key, least)
    whole_number(cfg, "warmup", 0)
    memory = flag(cfg, "memory")
    timed = {str(each["name"]): _loaded(cfg, each) for each in _models(cfg)}
    clip = real_clip(str(cfg.clip), "clip").clip(cfg.frames, cfg.size)
    if len(clip.source) < cfg.frames:
        raise ValueError(f"frames={cfg.frames}: {cfg.clip} has {len(clip.source)}")
    devices = {str(each.editor.pipe.device) for each in timed.values()}
    run.info(device=devices.pop(), seeds=[cfg.seed], settings=_plain(cfg))
    for each in timed.values():
        for file in model_files(each.editor.pipe):
            run.used_file(file)
    work = _Work(clip, run.dir / "frames", {"seed": cfg.seed, "resolution": cfg.size})
    with quiet():
        for each in timed.values():
            each.row |= work.counted(each)
        readings = _measured(cfg, timed, work)
    rows = [_row(name, each, readings, timed, cfg.frames) for name, each in timed.items()]
    write_atomic(run.dir / "results.csv", to_csv(rows))
    if memory:
        rows = [row | _memory(cfg, each) for row, each in zip(rows, timed.values(), strict=True)]
        write_atomic(run.dir / "results.csv", to_csv(rows))
    run.log({"cost/rounds": cfg.rounds})
    text = _table(rows) + "\n"
    write_atomic(run.dir / "times.txt", text)
    print(text, end="")


class _Work:
    """The edit that is measured: to frames on disk, which are removed."""

    def __init__(self, clip: Filmed, folder: Path, edit: Mapping[str, Any]) -> None:
        self._clip, self._folder, self._edit = clip, folder, dict(edit)

    def __call__(self, timed: _Timed) -> int:
        """Edit the clip once; how many guidance branches it took."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shown = Shown(self._clip, self._clip.name)
        made = timed.editor.edit(
            shown, self._folder, _INSTRUCTION, steps=timed.steps, **timed.scales, **self._edit
        )
        shutil.rmtree(self._folder)
        return made.branches

    def counted(self, timed: _Timed) -> Row:
        """TFLOPs a frame by part."""
        with CostTracker(timed.editor.pipe) as cost:
            branches = self(timed)
        found = cost.metrics(len(self._clip.source))
        kept = ("_tflops_all", "_tflops_conv_linear", "_params", "_calls")
        parts = {name: value for name, value in found.items() if name.endswith(kept)}
        return {"branches": branches} | parts


def _measured(cfg: DictConfig, timed: Mapping[str, _Timed], work: _Work) -> Sequence[Reading]:
    now: list[_Timed] = []
    clock = wall_clock(next(iter(timed.values())).editor.pipe.device)

    def step(_: int) -> None:
        each = now[0]
        with Stopwatch(each.modules, clock) as watch:
            work(each)
        for name, span in watch.lap().items():
            each.spent[name.partition(" ")[0]] += span.inclusive

    def enter(each: _Timed) -> Callable[[], Any]:
        def context() -> Any:
            now[:] = [each]
            return nullcontext()

        return context

    def meter(part: str) -> Callable[[], float]:
        return lambda: now[0].spent[part]

    return interleaved(
        {name: enter(each) for name, each in timed.items()},
        step,
        rounds=cfg.rounds,
        warmup=cfg.warmup,
        seed=cfg.seed,
        meters={"seconds": clock} | {part: meter(part) for part in PARTS.values()},
        description="edits",
    )


def _memory(cfg: DictConfig, timed: _Timed) -> Row:
    """Megabytes of weights, and what a call needs on top of them, by part."""
    found: Row = {}
    parts: dict[str, list[Any]] = {}
    for name, module in timed.modules.items():
        parts.setdefault(name.partition(" ")[0], []).append(module)
    for part, modules in parts.items():
        held = sum(p.nbytes for m in modules for p in [*m.parameters(), *m.buffers()])
        branches = timed.row["branches"] if part == "unet" else 1
        call = (timed.load, part, cfg.chunk * branches, cfg.size)
        needed = peak_memory(network_call, *call, device=str(timed.editor.pipe.device))
        found |= {f"cost/{part}_weights_mb": held / 1e6, f"cost/{part}_rise_mb": needed.rise / 1e6}
    return found


def _row(
    name: str,
    each: _Timed,
    readings: Sequence[Reading],
    timed: Mapping[str, _Timed],
    frames: int,
) -> Row:
    """What is known of one model; the ratios are to the first."""
    row: Row = {"name": name, "steps": each.steps} | each.row
    ours, theirs = (_seconds(readings, model) for model in (name, next(iter(timed))))
    for part, values in ours.items():
        row |= timing(values / frames).metrics(f"cost/{part}_seconds_per_frame")
    for part in ("networks", "unet", "frame"):
        ratio = paired_ratio(theirs[part], ours[part])
        ends = {"": ratio.value, "_lo": ratio.low, "_hi": ratio.high}
        row |= {f"cost/{part}_times_faster{end}": value for end, value in ends.items()}
    return row


def _seconds(readings: Sequence[Reading], name: str) -> dict[str, np.ndarray]:
    """Of one model in each round: by part, of the three together, of all else, and of all."""
    found = {part: series(readings, name, part) for part in PARTS.values()}
    networks, frame = np.sum(list(found.values()), axis=0), series(readings, name)
    return found | {"networks": networks, "rest": frame - networks, "frame": frame}


def _table(rows: Sequence[Row]) -> str:
    heads = ("model", "encoder", "UNet", "decoder", "rest", "times faster", "95 %")
    keys = ("vae_encoder", "unet", "vae_decoder", "rest")
    lines = []
    for row in rows:
        cells = [f"{1000 * row[f'cost/{key}_seconds_per_frame']:.2f} ms" for key in keys]
        low, high = (row[f"cost/networks_times_faster{end}"] for end in ("_lo", "_hi"))
        interval = "–" if low is None else f"[{low:.2f}, {high:.2f}]"
        lines.append((row["name"], *cells, f"{row['cost/networks_times_faster']:.2f}", interval))
    return text_table(heads, lines)


def _models(cfg: DictConfig) -> list[dict[str, Any]]:
    given = cfg.models
    found: Any = OmegaConf.to_container(given) if isinstance(given, ListConfig) else None
    if not found or not all(isinstance(each, dict) for each in found):
        raise ValueError(
            f"models={given}: must be a list such as [{{name: a, source: emoji-edit, steps: 10}}]"
        )
    for each in found:
        lacking, unknown = {"name", "source", "steps"} - set(each), set(each) - _KEYS
        if lacking or unknown:
            what = f"lacks {min(lacking)}" if lacking else f"unknown key {min(unknown)}"
            raise ValueError(f"models: {each}: {what}; allowed are {', '.join(sorted(_KEYS))}")
        whole_number(OmegaConf.create(each), "steps", 1)
    if len({str(each["name"]) for each in found}) < len(found):
        raise ValueError("models: two have the same name")
    return found


def _loaded(cfg: DictConfig, model: Mapping[str, Any]) -> _Timed:
    named = {"name": model["name"], "source": model["source"], "vae": model.get("vae")}
    asked = OmegaConf.create({"model": named, "scheduler": None, "device": cfg.device})
    pipe = load_editor(asked)
    anchors: Any = cfg.anchors
    if OmegaConf.is_config(anchors):
        anchors = OmegaConf.to_container(anchors)
    modules = {
        f"{PARTS[part]} {path}": module
        for item in components_of(pipe).items()
        for part, path, module in parts_of(*item)
        if part in PARTS
    }
    load = {"source": named["source"], "vae": named["vae"], "device": str(pipe.device)}
    editor = VideoEditor(pipe, anchors, chunk=cfg.chunk)
    scales: dict[str, Any] = {**edit_scales(cfg, pipe)}
    return _Timed(editor, model["steps"], scales, load, modules)


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)
