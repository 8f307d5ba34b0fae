"""Table and figures of the experiment, from `results.csv`; what takes pictures, from cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.base_errors import add_errors_to_base
from edgegen.runs.cell_samples import add_latency
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.tables import Score, make_table, score_text

# Clockwork Diffusion (arXiv 2312.08128), Table 1: TFLOPs, FID, CLIP score. The paper gives one row
# with its ResNet adaptor; the identity's stands beside it.
PUBLISHED = {
    "base": (10.8, 24.64, 0.300),
    "base + resnet": (7.3, 24.11, 0.295),
    "efficient": (9.5, 24.22, 0.302),
    "efficient + resnet": (5.9, 23.21, 0.296),
    "distilled": (4.7, 25.75, 0.297),
    "distilled + resnet": (2.9, 24.45, 0.295),
}
COST, ALL, ERROR = "cost/tflops_conv_linear", "cost/tflops_all", "quality/base_rmse"
TRAINED = [
    COST,
    ALL,
    ERROR,
    "quality/base_efflite0",
    "quality/fd_pca64_efflite0",
    "quality/clip_judge",
    "quality/concept_accuracy",
    "cost/seconds_per_image_interleaved",
    "cost/time_ratio",
]
CHANGE = f"{ERROR}_change"
GUIDANCE = 3  # of the base model, whose solution is the truth of all rows
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """TFLOPs of the full-size architectures beside the paper's; then the embedded family."""
    parts = ["# Full size, no weights: 8 steps, 512 × 512", "", full_size(of(rows, "full_size"))]
    parts += ["# Training the paper's adaptor on random weights, 256 × 256, batch 1", ""]
    parts += [fits(of(rows, "fits")), "", "# The embedded family, trained", ""]
    trained = of(rows, "rows")
    if not trained:
        return "\n".join([*parts, "Not run yet.", ""])
    metrics = [name for name in TRAINED if any(row.get(name) is not None for row in trained)]
    ways = {"cost/time_ratio": "lower"} if "cost/time_ratio" in metrics else {}
    parts += [make_table(trained, ["row"], [], metrics, ways).markdown()]
    return "\n".join([*parts, *changes(trained)])


def changes(rows: Rows) -> list[str]:
    """What reuse and its adaptor change of the error, within a model."""
    lines = ["| row | held against | error less that one's | below |", "| --- | --- | ---: | --- |"]
    for row in rows:
        if row.get(CHANGE) is not None:
            score = Score(row[CHANGE], row[f"{CHANGE}_lo"], row[f"{CHANGE}_hi"])
            told = score.below_zero("no, above")
            lines.append(f"| {row['row']} | {against(row['row'])} | {score_text(score)} | {told} |")
    return [*lines, ""] if len(lines) > 2 else []


def against(name: str) -> str | None:
    """The identity for what is learned, the model without reuse for the identity."""
    model, _, how = name.partition(" + ")
    return f"{model} + identity" if how.startswith("learned") else model if how else None


def full_size(rows: Rows) -> str:
    """TFLOPs = 2 × MACs of all UNet calls for one picture."""
    lines = [
        "| model | adaptor | TFLOPs conv+linear | published | Δ | TFLOPs all "
        "| saved, conv+linear | saved, all |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    costs = {row["row"]: row for row in rows}
    for name, row in costs.items():
        model, _, adaptor = name.partition(" + ")
        published = PUBLISHED.get(f"{model} + resnet" if adaptor else model)
        beside = f"{published[0]:.1f} | {row[COST] - published[0]:+.2f}" if published else "– | –"
        saved = [
            f"{100 * (1 - row[cost] / costs[model][cost]):.1f} %" if adaptor else "–"
            for cost in (COST, ALL)
        ]
        cells = [model, adaptor or "none", f"{row[COST]:.2f}", beside, f"{row[ALL]:.2f}", *saved]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "1 MAC = 2 FLOPs, both branches of classifier-free guidance, autoencoder and text encoder "
        "left out. The paper counts as `conv+linear` does, cuts off behind the first decimal, and "
        "has one row for its ResNet adaptor, which the identity's stand beside too. Its FID and "
        "CLIP scores, of COCO: "
        + "; ".join(f"{name} {fid} / {clip:.3f}" for name, (_, fid, clip) in PUBLISHED.items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def fits(rows: Rows) -> str:
    """What two steps of training at full size hold, and how much learns."""
    if not rows:
        return "Not run yet."
    (row,) = rows
    return (
        f"{row['train/params_trained'] / 1e6:.2f} million parameters learn, "
        f"{100 * row['train/params_share']:.2f} % of the UNet's (the paper: 14 million, 1.6 %); "
        f"memory peaks at {row['train/bytes_peak'] / 1e9:.2f} GB, model included."
    )


def figures(rows: Rows) -> dict[str, Figure]:
    """Error to the base model's solution against work, of the trained rows."""
    points = [
        Point(
            row[COST],
            row[ERROR],
            label=row["row"],
            group=row["row"].partition(" + ")[0],
            y_interval=(row[f"{ERROR}_lo"], row[f"{ERROR}_hi"]),
        )
        for row in of(rows, "rows")
        if row.get(ERROR) is not None
    ]
    return {"paired_error.png": plot_front(points, COST, ERROR)} if points else {}


def derived(rows: Rows, cells: Path) -> Rows:
    """Error of every trained row to the base model's own solution; time, interleaved."""
    rows = add_errors_to_base(rows, cells, "rows", "base", guidance=GUIDANCE, against=against)
    return add_latency(rows, cells, "latency", "model", _label)


def _label(row: dict[str, Any]) -> tuple[str, str] | None:
    """(model, method) of the latency cell in which a row was timed."""
    if row["stage"] != "rows":
        return None
    model, _, how = row["row"].partition(" + ")
    return model, how.partition(" ")[0] or "none"


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
