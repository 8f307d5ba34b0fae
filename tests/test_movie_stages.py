"""The committed cost of MoViE's stages, counted anew from the architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from edgegen.pipelines.architectures import architecture
from edgegen.pipelines.run_cost import run_cost
from edgegen.runs.experiment import Experiment, table_code
from edgegen.runs.finished import from_csv

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
