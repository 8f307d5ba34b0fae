"""Tables and figure of the experiment, from `results.csv` alone; one difference, from cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.cell_samples import add_latency, difference_rows, renewed
from edgegen.runs.pareto import Point, plot_front
from edgegen.runs.sensitivity_report import decibels, layers_figure
from edgegen.runs.tables import make_table, pairs_table

ERROR, BOPS, SIZE = "quality/paired_rmse", "cost/tbops", "cost/stored_mb"
CHANGE, BYTES = f"{ERROR}_change", "train/bytes_all"
TRAINED = ["train/loss", BYTES, "train/bytes_peak"]
CHANGED = [ERROR, "quality/paired_efflite0"]
SCORED = [
    SIZE,
    BOPS,
    "cost/seconds_per_image_interleaved",
    "quality/fd_pca64_efflite0",
    "quality/clip_judge",
]
# (what should change a picture less, than what)
BARS = [
    ("w8a8", "full, 16 steps"),
    *((f"w8a8 {each}", "w8a8") for each in ("by token", "mse", "4 time groups", "ends kept")),
    *(
        (name, "full, 16 steps")
        for name in (
            *("w8a8 last block a16", "w8a8 last block a16, gptq"),
            "w8a8 last block a16, three layers w16",
            *("w8a8 last block and feed-forward a16", "w8a16"),
            "w8a8 last block and feed-forward a16, three layers w16",
            "w8a8 last block and feed-forward a16, three layers w16, gptq",
        )
    ),
    *((f"lrqat w4 {seed}", f"lsq w4 {seed}") for seed in (0, 1)),
    *((f"lrqat w4 r8 {seed}", f"lsq w4 {seed}") for seed in (0, 1)),
    ("mixed, size of w4", "w4a8"),
    ("w4a8 bias correction", "w4a8"),
    ("lrqat w4 0", "w4a16 gptq"),
    ("vq2d 2.125", "vq1d 2.125"),
    ("vq2d 2.125", "vq2d k-means"),
]
WITHOUT = ("one step calibrated", "skips together", "time embedding as met")
for form in ("w4a8", "w4a4"):
    BARS += [(form, f"{form} {each}") for each in WITHOUT]
    BARS += [(f"{form} one step calibrated", f"{form} one step, time embedding as met")]
    BARS += [(f"{form} one prompt calibrated", f"{form} one step calibrated")]  # as many calls
    BARS += [(f"{form} {each}", form) for each in ("4 time groups", "by token", "gptq")]
ENGINES = [
    "cost/speed_channels_last",
    "cost/speed_compiled",
    "cost/speed_bf16",
    "cost/speed_int8",
    "cost/speed_int8_bf16",
    "cost/speed_int8_vs_bf16",
    "cost/speed_int8_bf16_vs_bf16",
    "quality/sqnr_db_int8",
    "quality/sqnr_db_int8_bf16",
]
# Columns of the stage `sqnr`: what is quantized of one layer → dB at the UNet's output.
SQNR = {
    "W4": ("weights", "4"),
    "A8": ("activations", "8"),
    "A4": ("activations", "4"),
    "W8A8": ("both", "8"),
    "W4A4": ("both", "4"),
}
Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """The bars; what each row changes, takes and scores; what training took."""
    parts = ["# Does it change pictures less?", "", bars(rows), ""]
    for title, stage, metrics in (
        ("Change against full precision, same noise, 25 steps", "changed", CHANGED),
        ("Size, work and scores", "rows", SCORED),
        ("Training: loss, and bytes of weights, gradients and optimizer", "trained", TRAINED),
        ("Learning rates, one seed, 120 steps", "rates", TRAINED[:1]),
        ("Engines: speed against float32 as it is, a batch of 8, one thread", "engines", ENGINES),
    ):
        parts += [f"# {title}", "", shown(of(rows, stage), metrics)]
    parts += ["# Signal to quantization noise at the UNet's output, dB", "", noise(rows)]
    return "\n".join(parts)


def noise(rows: Rows) -> str:
    """All layers together, then the layers that do most harm alone; sqnr.png has them all."""
    whole = of(rows, "layers")
    if not whole:
        return "Not run yet.\n"
    names = [name for name in whole[0] if name.startswith("quality/sqnr_db_")]
    together = ", ".join(
        f"{name.removeprefix('quality/sqnr_db_').upper()} {whole[0][name]:.1f}"
        for name in names
        if whole[0][name] is not None
    )
    lines = [f"All layers: {together}. Alone, the worst of each kind, of mean noise:", ""]
    lines += ["| | layer | dB |", "| --- | --- | ---: |"]
    for name in SQNR:
        means = {layer: mean_noise(dbs) for layer, dbs in by_layer(rows, name).items()}
        worst = sorted(means, key=means.__getitem__)[:3]
        lines += [f"| {name} | `{layer}` | {means[layer]:.1f} |" for layer in worst]
    return "\n".join(lines) + "\n"


def mean_noise(ratios: list[float]) -> float:
    """The ratio, in dB, of the noise averaged over timesteps."""
    return decibels(sum(10 ** (-each / 10) for each in ratios) / len(ratios))


def by_layer(rows: Rows, name: str) -> dict[str, list[float]]:
    """Layer → dB at each timestep."""
    found: dict[str, list[float]] = {}
    for row in of(rows, "sqnr"):
        if row.get(name) is not None:
            found.setdefault(str(row["layer"]), []).append(row[name])
    return found


def bars(rows: Rows) -> str:
    """Paired differences, with the side of zero on which they lie."""
    parts = [pairs_table(of(rows, "pairs"), CHANGE, "less change | than")]
    memory = {row["row"]: row.get(BYTES) for row in of(rows, "trained")}
    full = memory.get("lsq w4 0")
    parts += [
        f"- {name} takes {taken / full:.2f} of the bytes of full training."
        for name, taken in memory.items()
        if str(name).startswith("lrqat w4") and taken and full
    ]
    return "\n".join(filter(None, parts)) or "Not run yet."


def shown(rows: Rows, columns: list[str]) -> str:
    metrics = [name for name in columns if any(row.get(name) is not None for row in rows)]
    axis = "row" if rows and "row" in rows[0] else "seed"
    return make_table(rows, [axis], [], metrics, {}).markdown() if metrics else "Not run yet.\n"


def figures(rows: Rows) -> dict[str, Figure]:
    """Change against BOPs."""
    work = {row["row"]: row.get(BOPS) for row in of(rows, "rows")}
    points = [
        Point(
            work[row["row"]],
            row[ERROR],
            label=str(row["row"]),
            y_interval=(row[f"{ERROR}_lo"], row.get(f"{ERROR}_hi") or row[ERROR]),
        )
        for row in of(rows, "changed")
        if row.get(ERROR) is not None and work.get(row["row"]) is not None
    ]
    made = {"front.png": plot_front(points, BOPS, ERROR)} if points else {}
    if of(rows, "sqnr"):
        maps = {name: by_layer(rows, name) for name in ("W4", "A8", "A4")}
        layers = sorted(maps["W4"], key=_place)
        times = sorted({row["timestep"] for row in of(rows, "sqnr")}, reverse=True)
        titles = {name: [found[layer] for layer in layers] for name, found in maps.items()}
        blocks = [_block(layer) for layer in layers]
        labels = [block if block not in blocks[:row] else "" for row, block in enumerate(blocks)]
        made["sqnr.png"] = layers_figure(titles, labels, times, height=0.04)
    return made


def _block(layer: str) -> str:
    """The block that a layer is in; the embedding of time stands with the first convolution."""
    first, number, *_ = [*layer.split("."), ""]
    return {"time_embedding": "conv_in"}.get(
        first, f"{first}.{number}" if number.isdigit() else first
    )


def _place(layer: str) -> int:
    """Where in a pass a part of the UNet comes."""
    parts = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_out")
    return parts.index(layer.partition(".")[0])


def derived(rows: Rows, cells: Path) -> Rows:
    """Paired differences of the change, picture by picture."""
    rows = add_latency(rows, cells, "latency", "steps", timed)
    named = {row["row"]: row for row in of(rows, "changed")}
    pairs = {
        f"{less} < {more}": (named[less], named[more])
        for less, more in BARS
        if less in named and more in named
    }
    rows = renewed(rows, "pairs", difference_rows(cells, "pairs", pairs, [ERROR]), pairs)
    kept_noise = of(rows, "sqnr")
    for row in of(rows, "layers"):
        file = cells / str(row["cell"]) / "sensitivity.json"
        if file.is_file():
            kept_noise = sqnr_rows(json.loads(file.read_text(encoding="utf-8")))
    return [*(row for row in rows if row["stage"] != "sqnr"), *kept_noise]


def timed(row: dict[str, Any]) -> tuple[str, str] | None:
    """Where the time of a row is found: whole networks run on 8-bit integers, and in float32."""
    label = {"full": "none", "w8a8": "w8a8"}.get(str(row.get("row")))
    return ("25", label) if row["stage"] == "rows" and label else None


def sqnr_rows(found: dict[str, Any]) -> Rows:
    """A row a layer and timestep."""
    return [
        {"stage": "sqnr", "layer": layer["path"].removeprefix("unet."), "timestep": time}
        | {
            name: round(decibels(max(layer["errors"][kind][bits][number], 1e-12)), 2)
            for name, (kind, bits) in SQNR.items()
            if bits in layer["errors"].get(kind, {})
        }
        for layer in found["layers"]
        for number, time in enumerate(found["timesteps"])
    ]


def of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]
