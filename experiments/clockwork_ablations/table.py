"""Table and figures of the experiment, from `results.csv` alone; differences from the cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.cell_samples import difference_rows, renewed
from edgegen.runs.tables import Score, make_table, score_text

COST, ALL, ERROR, FEATURES = (
    "cost/tflops_conv_linear",
    "cost/tflops_all",
    "quality/ode_rmse",
    "quality/ode_efflite0",
)
CHANGE = f"{ERROR}_change"
COLUMNS = [COST, ALL, ERROR, FEATURES, "quality/clip_judge"]
FACTORS = {
    "Predictor": (
        *("plain", "identity", "linear", "quadratic", "narrow", "default", "default, other seed"),
        "wide",
    ),
    "Clock": (
        *("default", "clock 3, identity", "clock 3", "clock 4, identity", "clock 4"),
        *("reuse 5 to 8, identity", "reuse 5 to 8", "reuse 3 to 6, identity", "reuse 3 to 6"),
        *("span 2, identity", "span 2", "span 2, its own adaptor"),
    ),
    "Cut": (
        *("identity", "default", "stage 2, identity", "stage 2"),
        *("after upsampler, identity", "after upsampler"),
    ),
    "Scheduler": (
        *("plain", "identity", "default"),
        *(
            f"{name}{how}"
            for name in ("DDIM", "PNDM", "Euler", "UniPC")
            for how in (", plain", ", identity", "")
        ),
    ),
    "Inputs": ("r_in", "r_out", "r_in and r_out", "default"),
    "Trajectories": (
        *("default", "default, other seed", "as long", "as long, other seed"),
        *("unrolled", "unrolled, other seed", "whole runs", "whole runs, other seed"),
    ),
    "Steps": (
        *("4 steps, plain", "4 steps, identity", "4 steps", "plain", "identity", "default"),
        *(f"{n} steps{how}" for n in (16, 25, 50) for how in (", plain", ", identity", "")),
    ),
}
# What the paper finds better, what worse, and the FID of both (Clockwork Diffusion, arXiv
# 2312.08128, ablations on the efficient UNet; inputs on the distilled one). By its share of the
# channels at the cut `wide` is the paper's ResNet, and the default its lighter one: where the paper
# varies another factor around its ResNet, the default, which is trained for that, stands for it.
PUBLISHED = [
    ("wide", "identity", 23.21, 24.36),
    ("wide", "default", 23.21, 23.87),
    ("default", "identity", 23.87, 24.36),
    ("default", "reuse 5 to 8", 23.21, 28.07),
    ("default", "reuse 3 to 6", 23.21, 33.10),
    ("reuse 5 to 8", "reuse 3 to 6", 28.07, 33.10),
    ("default", "stage 2", 23.21, 24.49),
    ("default", "plain", 23.21, 24.22),
    ("PNDM", "PNDM, plain", 33.15, 35.64),
    ("DDIM, plain", "DDIM", 34.72, 38.38),
    ("r_out", "r_in", 24.76, 40.73),
    ("r_in and r_out", "r_out", 24.45, 24.76),
]
# Of ours alone: what should be better than what.
EXPECTED = [
    ("default", "clock 3"),
    ("clock 3", "clock 4"),
    ("default", "r_in and r_out"),
    ("default", "narrow"),
    ("unrolled", "as long"),
    ("unrolled, other seed", "as long, other seed"),
    ("whole runs", "unrolled"),
    ("whole runs, other seed", "unrolled, other seed"),
    ("default", "linear"),
    ("span 2, identity", "identity"),
    ("span 2, its own adaptor", "span 2, identity"),
    ("span 2, its own adaptor", "span 2"),
    ("4 steps", "4 steps, identity"),
    ("16 steps", "16 steps, identity"),
    ("25 steps", "25 steps, identity"),
    ("50 steps", "50 steps, identity"),
    ("DDIM", "DDIM, identity"),
    ("PNDM", "PNDM, identity"),
    ("Euler", "Euler, identity"),
    ("UniPC", "UniPC, identity"),
]
# Trained for just what the row does; all other rows take the default's adaptor, or none.
OWN = (
    *("default", "default, other seed", "narrow", "wide", "stage 2", "after upsampler", "DDIM"),
    *("r_in", "r_out", "r_in and r_out", "span 2, its own adaptor", "4 steps"),
    *("unrolled", "unrolled, other seed", "as long", "as long, other seed"),
    *("whole runs", "whole runs, other seed"),
)
UNTRAINED = ("plain", "identity", "linear", "quadratic")
TWINS = "default < default, other seed"
NOTE = (
    "`default`: an adaptor at clock 2, stage 1, 8 steps of DPM-Solver++, trained on the model's "
    "own trajectories, with all inputs. In brackets: 95 % intervals over prompts, of one training. "
)
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """Whether the paper's orderings hold; then each factor."""
    parts = ["# Does the paper's ordering hold?", "", orderings(rows)]
    measured = {row["row"]: row for row in rows if row["stage"] == "rows"}
    for factor, names in FACTORS.items():
        own = [measured[name] | {"adaptor": adaptor(name)} for name in names if name in measured]
        metrics = [name for name in COLUMNS if any(row.get(name) is not None for row in own)]
        axes = ["row", "adaptor"]
        made = make_table(own, axes, [], metrics).markdown() if metrics else "Not run yet.\n"
        parts += [f"# {factor}", "", made]
    return "\n".join(parts)


def adaptor(name: str) -> str:
    """Of a row: none, one trained for it, or the default's, which was trained for another case."""
    if name.endswith(UNTRAINED):
        return "none"
    return "its own" if name in OWN else "the default's"


def orderings(rows: Rows) -> str:
    """Better and worse, the paper's FID of both, and our difference of paired errors."""
    found = {row["pair"]: row for row in rows if row["stage"] == "pairs"}
    if not found:
        return "Not run yet.\n"
    lines = [
        "| better | worse | paper: FID | ours: paired error, better − worse | holds |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for better, worse, *published in [*PUBLISHED, *EXPECTED]:
        row = found.get(f"{better} < {worse}")
        if row is None:
            continue
        score = Score(row[CHANGE], row[f"{CHANGE}_lo"], row[f"{CHANGE}_hi"])
        holds = score.below_zero("no, reversed")
        beside = f"{published[0]:.2f} < {published[1]:.2f}" if published else "–"
        lines.append(f"| {better} | {worse} | {beside} | {score_text(score)} | {holds} |")
    return "\n".join([*lines, "", NOTE, *seeds(rows), ""])


def seeds(rows: Rows) -> list[str]:
    """How far two trainings of the default are apart."""
    pair = next((row for row in rows if row.get("pair") == TWINS), None)
    if pair is None:
        return []
    score = Score(pair[CHANGE], pair[f"{CHANGE}_lo"], pair[f"{CHANGE}_hi"])
    return [
        f"Its two training seeds differ by {score_text(score)}; rows named `other seed` are a "
        "second training, all others one."
    ]


def figures(rows: Rows) -> dict[str, Figure]:
    """None: the table says it."""
    return {}


def derived(rows: Rows, cells: Path) -> Rows:
    """The differences of the pairs that are claimed to be ordered."""
    named = {row["row"]: row for row in rows if row["stage"] == "rows"}
    pairs = {
        f"{better} < {worse}": (named[better], named[worse])
        for better, worse, *_ in [*PUBLISHED, *EXPECTED, TWINS.split(" < ")]
        if better in named and worse in named
    }
    return renewed(rows, "pairs", difference_rows(cells, "pairs", pairs, [ERROR]), pairs)
