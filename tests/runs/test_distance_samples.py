"""Distances of several cells that are drawn together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from edgegen.metrics.quality.distances import PrincipalAxes, frechet_distance
from edgegen.runs.distance_samples import SLACK, slack, slack_rows
from edgegen.runs.pictures import write_png


def test_the_slack_of_known_shifts() -> None:
    """Shifts along an axis of the reference: Fréchet distances are their squares."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 70, generator=generator).double() * torch.linspace(1, 3, 70)
    along = PrincipalAxes.fit(real).axes[:, 0]
    shifted = [real + size * along for size in (1.2, 1.0, 2.0)]
    clusters = np.arange(300) // 3
    value, sd = slack(shifted, real, clusters, 0.1, resamples=20)
    assert value == pytest.approx(0.1 * (4 - 1) - (1.2**2 - 1), abs=1e-6)
    # Drawn together, what the draw does to all three falls out.
    alone = [
        frechet_distance(shifted[0][torch.randint(300, (300,), generator=generator)], real)
        for _ in range(20)
    ]
    assert 0 < sd < 0.3 * float(torch.tensor(alone).std())
    assert slack([shifted[1], *shifted[1:]], real, clusters, 0.1, 2)[0] == pytest.approx(0.3)


def test_cells_are_read(tmp_path: Path) -> None:
    domain = {"file": None, "groups": ["food-fruit"], "styles": None, "limit": 20}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(("method", "base", "worse", "other")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({}))
        (folder / "config.yaml").write_text(yaml.safe_dump({"domain": domain, "batch_size": 4}))
        rng = np.random.default_rng(0)
        for place in range(6):
            picture = rng.integers(0, 100, (64, 64, 3)).astype(np.uint8) + 30 * number
            made = {"prompt": f"{name == 'other'} {place // 2}", "seed": place % 2, "index": 0}
            file = folder / "images" / f"{place:06}.png"
            write_png(file, Image.fromarray(picture.astype(np.uint8)), made)
        rows.append({"cell": name})
    method, base, worse, other = rows
    gone = {"cell": "gone"}
    bars = {"a": (method, base, worse), "b": (gone, base, worse), "same": (base, base, base)}
    found = {row["pair"]: row for row in slack_rows(tmp_path, bars, 0.1, resamples=3)}
    assert set(found) == {"a", "same"}
    assert found["same"][SLACK] == 0
    assert found["a"][f"{SLACK}_n"] == 6
    with pytest.raises(ValueError, match="other prompts or noise"):
        slack_rows(tmp_path, {"c": (other, base, worse)}, 0.1, resamples=2)
