"""Tables and figure of the experiment, from `results.csv` alone; shares kept, from the cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edgegen.metrics.quality.bootstrap import ratio_interval
from edgegen.runs.cell_samples import read_scores, renewed
from edgegen.runs.finished import from_csv
from edgegen.runs.tables import Score, make_table, score_text

ACCURACY = [
    f"quality/{what}_{kind}"
    for kind in ("natural", "emoji")
    for what in ("closed_psnr", "closed_efflite0", "covered_efflite0", "followed")
]
# What decides the bar on accuracy; features are shown and decide nothing.
DECISIVE = [name for name in ACCURACY if "efflite0" not in name]
STEADY = ["video/regret", "video/warp_error", "video/tem_con_efflite0", "video/flicker"]
FASTER = "cost/networks_times_faster"
PARTS = {"UNet": "unet", "encoder": "vae_encoder", "decoder": "vae_decoder"}
# TFLOPs a frame at 480², Table 1 of arXiv 2412.06578.
PUBLISHED = {"base": 21.31, "efficient": 16.10, "guidance-distilled": 5.50, "few-step": 0.76}
# By their names in the tables; the first is the paper's, and decides.
CONVENTIONS = {"conv+linear": "conv_linear", "all": "all"}
COUNTED = (
    "1 MAC = 2 FLOPs, convolutions and linears (`conv+linear`) but for columns that say `all`, "
    "which have the attention's products too."
)
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
    """What each stage of the embedded editor does, keeps, costs and takes."""
    accuracy, clips = of(rows, "accuracy"), of(rows, "clips")
    if not accuracy or not clips:
        return "\n".join(["# Embedded\n\nNot run yet.\n", cost(of(rows, "parts"))])
    better: Any = {name: "higher" for name in ACCURACY}
    parts = ["# Embedded: accuracy on held-out pairs", ""]
    parts += [make_table(accuracy, ["name"], [], ACCURACY, better).markdown()]
    kept = of(rows, "kept")
    if kept:
        names = [f"{name}_kept" for name in ACCURACY if any(f"{name}_kept" in row for row in kept)]
        parts += ["# Embedded: share of the base's accuracy that is kept", ""]
        parts += [make_table(kept, ["name"], [], names, {}).markdown()]
        lacking = ", ".join(name for name in ACCURACY if f"{name}_kept" not in names)
        parts += [f"Left out, as the base has none to keep: {lacking}.\n"] if lacking else []
    parts += ["# Embedded: steadiness", ""]
    parts += [make_table(clips, ["name"], [], STEADY, {}).markdown()]
    return "\n".join([*parts, cost(of(rows, "parts")), bars(kept, of(rows, "parts"))])


def bars(kept: list[Row], parts: list[Row]) -> str:
    """Whether the last stage reaches what was set out to be reached, see README.md."""
    found = []
    if len(parts) > 1:
        times = whole(parts[0]) / whole(parts[-1])
        name = "times fewer TFLOPs a whole frame, at least 12 (conv+linear)"
        found.append((name, Score(times, times, times), 12.0))
        names = [f"cost/frame_times_faster{end}" for end in ("", "_lo", "_hi")]
        score = Score(*(parts[-1][name] for name in names))
        found.append(("times faster a whole frame, wall clock, at least 10", score, 10.0))
    decisive = [f"{name}_kept" for name in DECISIVE if kept and f"{name}_kept" in kept[-1]]
    if decisive:
        least = min(decisive, key=lambda name: kept[-1][name])
        score = Score(*(kept[-1][f"{least}{end}"] for end in ("", "_lo", "_hi")))
        found.append((f"lowest share of accuracy kept, at least .85 (`{least}`)", score, 0.85))
    last = next((rows[-1]["name"] for rows in (parts, kept) if rows), "")
    lines = [f"# Embedded: bars, {last} against the base", "", "| bar | value | reached |"]
    lines += ["| --- | ---: | --- |"]
    for name, score, least_allowed in found:
        lines.append(
            f"| {name} | {score_text(score)} | {'yes' if score.value >= least_allowed else 'no'} |"
        )
    return "\n".join([*lines, "", "One training seed of each stage.", ""]) if found else ""


def cost(rows: list[Row]) -> str:
    """GFLOPs, milliseconds and memory of a frame by part, and how much less than the base."""
    if not rows:
        return "# Embedded: cost of a frame\n\nNot run yet.\n"
    heads = ["stage", *(f"{name}, GFLOPs" for name in PARTS), "whole frame", "times fewer"]
    heads += ["whole frame, all", "times fewer, all"]
    work = [_pipes(heads), _pipes(["---"] + ["---:"] * (len(heads) - 1))]
    heads = ["stage", *(f"{name}, ms" for name in (*PARTS, "rest")), "times faster", "95 %"]
    heads += ["with the rest", "95 %"]
    time = [_pipes(heads), _pipes(["---"] + ["---:"] * (len(heads) - 1))]
    heads = ["stage", *(f"{name}, MB: weights + call" for name in PARTS)]
    memory = [_pipes(heads), _pipes(["---"] + ["---:"] * (len(heads) - 1))]
    for row in rows:
        cells = [row["name"], *(f"{1000 * part(row, name):.3g}" for name in PARTS)]
        for convention in CONVENTIONS.values():
            total = whole(row, convention)
            cells += [f"{1000 * total:.3g}", f"{whole(rows[0], convention) / total:.1f}"]
        work.append(_pipes(cells))
        taken = [f"cost/{slug}_seconds_per_frame" for slug in (*PARTS.values(), "rest")]
        cells = [row["name"], *(f"{1000 * row[key]:.3g}" for key in taken)]
        for faster in (FASTER, "cost/frame_times_faster"):
            low, high = row.get(f"{faster}_lo"), row.get(f"{faster}_hi")
            cells += [f"{row[faster]:.1f}", "–" if low is None else f"[{low:.1f}, {high:.1f}]"]
        time.append(_pipes(cells))
        if row.get("cost/unet_rise_mb") is not None:
            held = [
                f"{row[f'cost/{slug}_weights_mb']:.1f} + {row[f'cost/{slug}_rise_mb']:.1f}"
                for slug in PARTS.values()
            ]
            memory.append(_pipes([row["name"], *held]))
    return "\n".join(
        ["# Embedded: work of a frame", "", *work, "", COUNTED, ""]
        + ["# Embedded: time of a frame", "", *time, ""]
        + [
            "Times faster: the three networks of a frame together. Rest: the text, once a clip, "
            "noise, scheduler, reading and writing files, and their checksums.",
            "",
        ]
        + (["# Embedded: memory", "", *memory, ""] if len(memory) > 2 else [])
    )


def derived(rows: list[Row], cells: Path) -> list[Row]:
    """Rows `kept` (accuracy as a share of the base's) and `parts` (what `edit_times` measured)."""
    accuracy, parts = of(rows, "accuracy"), of(rows, "parts")
    base = next((row for row in accuracy if row["name"] == "base"), None)
    if base is not None:
        found = [
            _kept(cells, row, base)
            for row in accuracy
            if all(_file(cells, each, "scores.csv") for each in (row, base))
        ]
        pairs = {row["name"]: (row, base) for row in accuracy}
        rows = renewed(rows, "kept", found, pairs, key="name")
    for row in of(rows, "times"):
        if _file(cells, row, "results.csv"):
            text = (cells / row["cell"] / "results.csv").read_text(encoding="utf-8")
            parts = [{"stage": "parts"} | each for each in from_csv(text)]
    return [row for row in rows if row["stage"] != "parts"] + parts


def _kept(cells: Path, row: Row, base: Row) -> Row:
    """Ratios of means over the same pairs, drawn together by subject."""
    found: Row = {"stage": "kept", "name": row["name"]}
    for metric in ACCURACY:
        if (base.get(metric) or 0) <= 0:
            continue
        (ours, asked), (theirs, same) = (
            read_scores(cells / each["cell"], metric) for each in (row, base)
        )
        if asked != same:
            raise ValueError(f"cells {row['cell']} and {base['cell']}: other pairs")
        known = ~np.isnan(theirs)
        subjects = [prompt.split(":")[0] for prompt, _ in asked]
        _, place = np.unique(np.array(subjects)[known], return_inverse=True)
        sums = [np.bincount(place, values[known]) for values in (ours, theirs)]
        low, high = ratio_interval(*sums)
        found |= {f"{metric}_kept": sums[0].sum() / sums[1].sum()}
        found |= {f"{metric}_kept_lo": low, f"{metric}_kept_hi": high}
    return found


def _file(cells: Path, row: Row, name: str) -> bool:
    return row.get("cell") is not None and (cells / str(row["cell"]) / name).is_file()


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
        for name, convention in CONVENTIONS.items()
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
            f"{COUNTED} Published: MoViE, Table 1.",
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
