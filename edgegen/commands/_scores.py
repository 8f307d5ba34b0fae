"""The scores that the config group `metrics` names, and how they are written down."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from ..metrics.quality.evaluation import Score, Scores
from ..metrics.quality.kept import backbone_digest
from ..metrics.quality.scores import WholeClipScore, score_of
from ..runs.atomic import write_atomic
from ..runs.record import Run

# What of metrics=default makes no sense for a kind of material.
_LEFT_OUT = {
    "a model": ("vmaf", "temporal"),
    "pictures": ("concept", "vmaf", "temporal"),
    "videos": ("distribution", "text", "concept"),
}


def scores_of(cfg: DictConfig, kind: str) -> tuple[dict[str, Score], dict[str, str]]:
    """The scores of `cfg.metrics` for `kind` of material, and which cannot be, with the reason.

    Raises ValueError, naming the option, for an entry that is no score, or one that was asked for
    by name and judges another kind.
    """
    found: dict[str, Score] = {}
    notes: dict[str, str] = {}
    for key, entry in (cfg.metrics or {}).items():
        name = str(key)
        if not isinstance(entry, DictConfig) or "_target_" not in entry:
            raise ValueError(f"metrics.{name}: give metrics=[{name}] beside it")
        if name in _LEFT_OUT[kind]:
            if by_default():
                continue
            raise ValueError(f"metrics={name}: cannot judge {kind}")
        if "weights" in entry and entry.weights is None:
            notes[f"quality/{name}"] = f"no weights: give metrics.{name}.weights=FILE"
            continue
        found[name] = score_of(instantiate(entry, _convert_="all"), name)
        if isinstance(found[name], WholeClipScore) and kind != "videos":
            raise ValueError(f"metrics={name}: judges videos alone")
    if not found:
        why = "; ".join(notes.values()) or "there is nothing to compute; give metrics=default"
        raise ValueError(f"metrics: {why}")
    return found, notes


def by_default() -> bool:
    """Whether nobody asked for the metrics by name: then those that cannot be are only noted."""
    return HydraConfig.get().runtime.choices.get("metrics") == "default"


def backbones_of(scores: Iterable[Score]) -> list[nn.Module]:
    """The networks of the scores whose features are kept, each once."""
    unlike: dict[str, nn.Module] = {}
    for score in scores:
        for backbone in score.backbones:
            unlike.setdefault(backbone_digest(backbone), backbone)
    return list(unlike.values())


def move(scores: Iterable[Score], device: torch.device) -> None:
    """The networks of the scores to a device."""
    for score in scores:
        for backbone in score.backbones:
            backbone.to(device)


def write_scores(run: Run, found: Scores, pictures: Mapping[str, Sequence[Any]]) -> None:
    """Metrics into the record, and into `scores.csv` a row a picture.

    Args:
        pictures: columns that say which picture a row is of.
    """
    run.log(found.metrics)
    for name, reason in found.notes.items():
        run.note(name, reason)
    if found.rows:
        columns: dict[str, Sequence[Any]] = {**pictures}
        columns |= {name: [repr(v) for v in rows.tolist()] for name, rows in found.rows.items()}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomic(run.dir / "scores.csv", text.getvalue())


def scores_table(found: Scores) -> str:
    """Name, value, interval and number of samples, a line each; then what there is not, and why."""
    ends = ("_lo", "_hi", "_sd", "_n", "_floor", "_floor_n")
    lines = []
    for name, value in found.metrics.items():
        base = next((name[: -len(end)] for end in ends if name.endswith(end)), None)
        if base in found.metrics:
            continue
        line = f"{name:<36} {value:>10.4g}"
        low, high = (found.metrics.get(f"{name}_{end}", math.nan) for end in ("lo", "hi"))
        if math.isfinite(low) and math.isfinite(high):
            line += f"  [{low:.4g}, {high:.4g}]"
        if f"{name}_floor" in found.metrics:
            line += f"  noise floor {found.metrics[f'{name}_floor']:.4g}"
        lines.append(line)
    return "\n".join(lines + [f"{name:<36} {'—':>10}  {why}" for name, why in found.notes.items()])
