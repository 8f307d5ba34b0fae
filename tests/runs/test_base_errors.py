"""Pictures of several models on disk, a known way off one truth."""

import numpy as np
import pytest
from PIL import Image

from edgegen.metrics.quality.pictures import as_floats
from edgegen.runs import base_errors
from edgegen.runs.base_errors import add_errors_to_base
from edgegen.runs.pictures import write_png


def test_errors_to_one_models_solution(tmp_path, monkeypatch):
    """One picture of each prompt, and the change against another row, pair by pair."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 200, (4, 16, 16, 3)).astype(np.uint8)
    rows = []
    for name, off in (("base", 10), ("base + identity", 20), ("base + learned", 15)):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        for place in range(8):  # two pictures of each prompt; the second ones are not looked at
            picture = truth[place // 2] + (off if place % 2 == 0 else 50)
            made = {"prompt": f"p{place // 2}", "seed": place % 2, "index": place}
            write_png(folder / "images" / f"{place:06}.png", Image.fromarray(picture), made)
        rows.append({"stage": "rows", "row": name, "cell": name})
    asked = [{"prompt": f"p{n}", "seed": 0, "index": 2 * n} for n in range(4)]
    floats = as_floats(list(truth))
    prompts = np.array([each["prompt"] for each in asked])
    monkeypatch.setattr(base_errors, "_truth", lambda *_: (asked, floats, prompts))
    found = add_errors_to_base(
        rows, tmp_path, "rows", "base", guidance=3, against=lambda name: "base + identity"
    )
    errors = [row["quality/base_rmse"] * 255 for row in found]
    assert errors == pytest.approx([10, 20, 15], abs=1e-3)
    assert found[0]["quality/base_rmse_n"] == 4
    changes = [row["quality/base_rmse_change"] * 255 for row in found]
    assert changes == pytest.approx([-10, 0, -5], abs=1e-3)
    gone = [{"stage": "rows", "row": "base", "cell": "gone"}]
    assert add_errors_to_base(gone, tmp_path, "rows", "base", guidance=3) == gone
