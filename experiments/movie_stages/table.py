"""Table and figure of the experiment, from `results.csv` alone."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from edgegen.runs.tables import make_table

ACCURACY = [
    f"quality/{what}_{kind}"
    for kind in ("natural", "emoji")
    for what in ("closed_psnr", "closed_efflite0", "covered_efflite0", "followed")
]
STEADY = ["video/regret", "video/warp_error", "video/tem_con_efflite0", "video/flicker"]
SECONDS = "cost/seconds_per_frame"
PARTS = {"UNet": "unet", "encoder": "vae_encoder", "decoder": "vae_decoder"}
# TFLOPs a frame at 480², Table 1 of arXiv 2412.06578.
PUBLISHED = {"base": 21.31, "efficient": 16.10, "guidance-distilled": 5.50, "few-step": 0.76}
Row = dict[str, Any]


def part(row: Row, name: str, convention: str = "conv_linear") -> float:
    """TFLOPs a frame of one of `PARTS`."""
    return row[f"cost/{PARTS[name]}_tflops_{convention}"]


def whole(row: Row, convention: str = "conv_linear") -> float:
    """TFLOPs of a whole frame: the source encoded, all evaluations of the UNet, the result decoded.

    The text is encoded once a clip, and left out.
    """
    return sum(part(row, name, convention) for name in PARTS)


def table(rows: list[Row]) -> str:
    """Full size: TFLOPs beside the published ones. Embedded: accuracy, steadiness, cost, bars."""
    return "\n".join([full_size(of(rows, "full_size")), embedded(rows)])


def embedded(rows: list[Row]) -> str:
    """What each stage of the embedded editor does, costs and takes."""
    accuracy, clips = of(rows, "accuracy"), of(rows, "clips")
    if not accuracy or not clips:
        return "# Embedded\n\nNot run yet.\n"
    better: Any = {name: "higher" for name in ACCURACY}
    parts = ["# Embedded: accuracy on held-out pairs", ""]
    parts += [make_table(accuracy, ["name"], [], ACCURACY, better).markdown()]
    parts += ["# Embedded: steadiness, and seconds a frame", ""]
    parts += [make_table(clips, ["name"], [], [*STEADY, SECONDS], {}).markdown()]
    heads = ["stage", *(f"{name}, GFLOPs" for name in PARTS), "whole frame", "times fewer"]
    heads += ["times faster", "accuracy kept"]
    lines = [_pipes(heads), _pipes(["---"] + ["---:"] * (len(heads) - 1))]
    for row, judged in zip(clips, accuracy, strict=True):
        cells = [row["name"], *(f"{1000 * part(row, name):.3g}" for name in PARTS)]
        cells += [f"{1000 * whole(row):.3g}", f"{whole(clips[0]) / whole(row):.1f}"]
        times = clips[0].get(SECONDS), row.get(SECONDS)
        cells += ["–" if None in times else f"{times[0] / times[1]:.1f}"]
        kept = [judged[name] / accuracy[0][name] for name in judged_by(accuracy)]
        lines.append(_pipes([*cells, f"{min(kept):.0%}" if kept else "–"]))
    left_out = [name for name in ACCURACY if name not in judged_by(accuracy)]
    note = "Accuracy kept: the least share of the base's, over all columns of the first table"
    note += f" but {', '.join(left_out)}, where there is nothing to keep." if left_out else "."
    return "\n".join([*parts, "# Embedded: cost of a frame", "", *lines, "", note, ""])


def judged_by(accuracy: list[Row]) -> list[str]:
    """The columns that all stages have, and of which the base has some to keep."""
    there = [name for name in ACCURACY if all(row.get(name) is not None for row in accuracy)]
    return [name for name in there if accuracy[0][name] > 0]


def of(rows: list[Row], stage: str) -> list[Row]:
    return [row for row in rows if row["stage"] == stage]


def full_size(rows: list[Row]) -> str:
    """TFLOPs a frame by part beside the published ones; then how many times fewer than the base."""
    heads = [
        "stage",
        "UNet evaluations",
        *PARTS,
        "whole frame",
        "published",
        "difference",
        "whole frame, all",
        "million parameters",
    ]
    lines = []
    for row in rows:
        found, published = whole(row), PUBLISHED[row["name"]]
        params = sum(row[f"cost/{slug}_params"] for slug in PARTS.values()) / 1e6
        cells = [
            row["name"],
            f"{row['cost/unet_calls']:g}",
            *(f"{part(row, n):.3f}" for n in PARTS),
        ]
        cells += [f"{found:.3f}", f"{published:.2f}", f"{found / published - 1:+.1%}"]
        lines.append([*cells, f"{whole(row, 'all'):.3f}", f"{params:.1f}"])
    base, last = rows[0], rows[-1]
    fewer = [
        [
            name,
            f"{whole(base, convention) / whole(last, convention):.1f}",
            f"{part(base, 'UNet', convention) / part(last, 'UNet', convention):.1f}",
        ]
        for name, convention in (("conv+linear", "conv_linear"), ("all", "all"))
    ]
    published = PUBLISHED[base["name"]] / PUBLISHED[last["name"]]
    return "\n".join(
        [
            "# Full size: TFLOPs a frame at 480²",
            "",
            _pipes(heads),
            _pipes(["---"] + ["---:"] * (len(heads) - 1)),
            *map(_pipes, lines),
            "",
            "1 MAC = 2 FLOPs, convolutions and linears (`conv+linear`) but for the column that "
            "says `all`, which has the attention's products too. Published: MoViE, Table 1.",
            "",
            f"## From {base['name']} to {last['name']}: how many times fewer TFLOPs",
            "",
            _pipes(["counted", "whole frame", "UNet"]),
            _pipes(["---", "---:", "---:"]),
            *map(_pipes, fewer),
            _pipes(["published (conv+linear)", f"{published:.1f}", ""]),
            "",
        ]
    )


def figures(rows: list[Row]) -> dict[str, Figure]:
    """Full size: what a frame costs, part by part, stage by stage."""
    rows = of(rows, "full_size")
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    names = [row["name"] for row in rows]
    left = [0.0] * len(rows)
    for name, colour in zip(PARTS, ("#2f6fb0", "#b4581c", "#3f8f5f"), strict=True):
        widths = [part(row, name) for row in rows]
        axes.barh(names, widths, left=left, color=colour, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, end in zip(names, left, strict=True):
        axes.annotate(f" {end:.2f}", (end, name), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("TFLOPs a frame at 480² (conv+linear)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return {"tflops.png": figure}


def _pipes(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
