"""Fréchet distances of several cells of an experiment, drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ..data.emoji import STYLES, EmojiSet
from ..data.views import BACKGROUNDS, composite
from ..media.pictures import read_picture
from ..metrics.quality.bootstrap import Z95
from ..metrics.quality.distances import PrincipalAxes, cluster_members, frechet_distance
from ..metrics.quality.distribution import AXES
from ..metrics.quality.efflite0 import EffLite0
from ..metrics.quality.kept import KeptFeatures
from .finished import Row
from .pictures import read_settings

SLACK = "quality/fd_slack"


def slack_rows(
    cells: Path, bars: Mapping[str, tuple[Row, Row, Row]], share: float, resamples: int = 200
) -> list[Row]:
    """Rows of a stage `slacks`, named `pair`: how far a method's distance keeps within a bound.

    share · (FD(worse) − FD(base)) − |FD(method) − FD(base)|, where FD is
    `quality/fd_pca64_efflite0`; over 0 where the bound is kept. All three have the same prompts and
    noise, which each resample draws for all three alike, as it does the real pictures.

    Args:
        bars: by name, the rows of the method, of the base and of what is known to be worse. Those
            whose cells are not on disk are left out.

    Raises:
        ValueError: other prompts or noise.
    """
    made = []
    found: dict[str, tuple[Tensor, list[Any]]] = {}
    real: Tensor | None = None
    for name, rows in bars.items():
        folders = [cells / str(row.get("cell")) for row in rows]
        if not all((folder / "run.json").is_file() for folder in folders):
            continue
        if real is None:
            real = _real(folders[1])
        for folder in folders:
            if folder.name not in found:
                found[folder.name] = _features(folder)
        asked = [found[folder.name][1] for folder in folders]
        if any(each != asked[0] for each in asked):
            raise ValueError(f"{name}: its cells were made with other prompts or noise")
        sets = [found[folder.name][0] for folder in folders]
        clusters = np.array([prompt for prompt, *_ in asked[0]])
        value, sd = slack(sets, real, clusters, share, resamples)
        ends = {"": value, "_lo": value - Z95 * sd, "_hi": value + Z95 * sd}
        row = {f"{SLACK}{end}": number for end, number in ends.items()}
        made.append({"stage": "slacks", "pair": name, **row, f"{SLACK}_n": len(clusters)})
    return made


def slack(
    sets: Sequence[Tensor], real: Tensor, clusters: np.ndarray, share: float, resamples: int
) -> tuple[float, float]:
    """The bound's slack, see `slack_rows`, and its bootstrap standard deviation.

    Args:
        sets: features of the method, the base and the worse one, (N, D) each.
        real: (M, D).
        clusters: (N,) labels of groups that are drawn whole.
    """
    axes = PrincipalAxes.fit(real.double(), AXES)
    reference, projected = axes(real), [axes(each) for each in sets]

    def measured(places: Tensor, others: Tensor) -> float:
        method, base, worse = (
            frechet_distance(each[places], reference[others]) for each in projected
        )
        return share * (worse - base) - abs(method - base)

    generator = torch.Generator().manual_seed(0)
    members = cluster_members(clusters, len(clusters))
    drawn = []
    for _ in range(resamples):
        chosen = torch.randint(len(members), (len(members),), generator=generator)
        others = torch.randint(len(reference), (len(reference),), generator=generator)
        drawn.append(measured(members[chosen].flatten(), others))
    value = measured(torch.arange(len(clusters)), torch.arange(len(reference)))
    return value, float(torch.tensor(drawn).double().std())


def _features(folder: Path) -> tuple[Tensor, list[Any]]:
    """Of a cell's pictures, and (prompt, seed, index) of each."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    files = sorted((folder / "images").glob("*.png"))
    asked = [read_settings(file) or {} for file in files]
    kept = KeptFeatures(EffLite0(), folder / "features", config["batch_size"])
    features = kept([read_picture(file) for file in files])
    return features, [tuple(each.get(key) for key in ("prompt", "seed", "index")) for each in asked]


def _real(folder: Path) -> Tensor:
    """Features of the pictures that a cell was held against."""
    domain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["domain"]
    emoji = EmojiSet(
        domain["file"], domain["groups"], domain["styles"] or STYLES, False, domain["limit"]
    )
    white = np.array(BACKGROUNDS["white"])
    pixels = [composite(emoji.rgba(index), white) for index in emoji.indices("train")]
    return KeptFeatures(EffLite0(), folder / "features")(pixels)
