"""The committed cost of MoViE's stages, counted anew from the architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from edgegen.pipelines.architectures import architecture
from edgegen.pipelines.run_cost import run_cost
from edgegen.runs.experiment import Experiment, table_code
from edgegen.runs.finished import from_csv, to_csv

FOLDER = Path(__file__).parents[1] / "experiments" / "movie_stages"
RESULTS = from_csv((FOLDER / "results.csv").read_text())
ROWS = {row["name"]: row for row in RESULTS if row["stage"] == "full_size"}
CODE = table_code(FOLDER)
# Table 1 of arXiv 2412.06578; and conv+linear TFLOPs counted by torch's FlopCounterMode on `meta`.
PUBLISHED = {"base": 21.31, "efficient": 16.10, "guidance-distilled": 5.50, "few-step": 0.76}
COUNTED = {"base": 21.14, "efficient": 16.02, "guidance-distilled": 5.50, "few-step": 0.758}


def test_every_stage_is_near_the_published_figure() -> None:
    assert list(ROWS) == list(PUBLISHED)
    for name, row in ROWS.items():
        assert CODE.whole(row) == pytest.approx(PUBLISHED[name], rel=0.02)
        assert CODE.whole(row) == pytest.approx(COUNTED[name], rel=0.002)


def test_the_savings() -> None:
    base, last = ROWS["base"], ROWS["few-step"]
    assert CODE.part(base, "UNet") / CODE.part(last, "UNet") >= 34
    assert CODE.whole(base, "all") / CODE.whole(last, "all") >= 28
    assert CODE.whole(base) / CODE.whole(last) == pytest.approx(21.31 / 0.76, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_results_come_out_again(name: str) -> None:
    experiment = Experiment.read(FOLDER)
    points = experiment.points(experiment.stages[0], [])
    settings = next(each for point, each in points if point["name"] == name)
    GlobalHydra.instance().clear()
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        composed = compose("flops", [f"model={settings['model']}"])
    config = OmegaConf.to_container(composed.model, resolve=True)
    keys = ("steps", "guidance", "height", "width")
    found = run_cost(architecture(config), **{key: settings[key] for key in keys}).metrics()
    for metric in (each for each in experiment.metrics if ROWS[name].get(each) is not None):
        assert found[metric] == pytest.approx(ROWS[name][metric], rel=1e-5), metric


def test_what_is_kept_is_a_ratio_over_the_same_pairs(tmp_path: Path) -> None:
    """A last stage that gains nine tenths of the base on every pair keeps 90 %, without doubt."""
    rng = np.random.default_rng(0)
    gains = rng.uniform(1, 3, 24)
    rows = []
    for name, share in (("base", 1.0), ("1 step", 0.9)):
        scores = [
            {"prompt": f"s{n % 6}: {n}: rule/night", "seed": 0, CODE.ACCURACY[0]: share * gain}
            for n, gain in enumerate(gains)
        ]
        (tmp_path / name).mkdir()
        scores += [{"prompt": "a: 0: b", "seed": 0, CODE.ACCURACY[0]: None}]  # of another group
        (tmp_path / name / "scores.csv").write_text(to_csv(scores))
        row = {"stage": "accuracy", "name": name, "cell": name, CODE.ACCURACY[1]: -0.2}
        rows.append(row | {CODE.ACCURACY[0]: share * 0.6})
    (tmp_path / "times").mkdir()
    measured = {f"cost/{part}_seconds_per_frame": 0.5 for part in (*CODE.PARTS.values(), "rest")}
    for convention, tflops in (("conv_linear", 2.0), ("all", 3.0)):
        measured |= {f"cost/{part}_tflops_{convention}": tflops for part in CODE.PARTS.values()}
    faster = (CODE.FASTER, "cost/frame_times_faster")
    measured |= {f"{name}{end}": 11.0 for name in faster for end in ("", "_lo", "_hi")}
    last = {k: v / 13 if "tflops" in k else v for k, v in measured.items()}
    stages = [{"name": "base"} | measured, {"name": "1 step"} | last]
    (tmp_path / "times" / "results.csv").write_text(to_csv(stages))
    rows += [{"stage": "clips", "name": "base", "cell": "gone", "video/regret": 0.1}]
    rows += [{"stage": "times", "seed": 0, "cell": "times"}]
    made = CODE.derived(rows, tmp_path)
    kept = {row["name"]: row for row in made if row["stage"] == "kept"}
    key = f"{CODE.ACCURACY[0]}_kept"
    for end in ("", "_lo", "_hi"):
        assert kept["1 step"][f"{key}{end}"] == pytest.approx(0.9, abs=1e-4)
    assert f"{CODE.ACCURACY[1]}_kept" not in kept["base"]  # the base has none
    text = CODE.embedded(made)
    assert "# Embedded: bars, 1 step against the base" in text
    assert "| base | 2e+03 | 2e+03 | 2e+03 | 6e+03 | 1.0 | 9e+03 | 1.0 |" in text
    assert "11.0 | [11.0, 11.0]" in text
    reached = [line.split("|")[2:4] for line in text.splitlines() if "at least" in line]
    assert [(float(value.split()[0]), met.strip()) for value, met in reached] == [
        (pytest.approx(13), "yes"),
        (pytest.approx(11), "yes"),
        (pytest.approx(0.9), "yes"),
    ]
    slow = [row | {"cost/frame_times_faster": 9.0} for row in CODE.of(made, "parts")]
    assert "| no |" in CODE.bars([], slow)
    # A fresh clone has no cells: what was found of them stays.
    again = CODE.derived(made, tmp_path / "nowhere")
    assert [row for row in again if row["stage"] in ("kept", "parts")] == [
        row for row in made if row["stage"] in ("kept", "parts")
    ]
