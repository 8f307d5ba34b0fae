"""The first pictures of five methods side by side, unpicked: `pictures.png` beside this file.

    python experiments/reuse_peers/pictures.py [FOLDER]

FOLDER is the experiment's, outputs/experiment/reuse_peers by default, after the stage `methods`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from edgegen.runs.finished import from_csv
from edgegen.runs.pictures import grid, picture_name, read_settings, write_png

HERE = Path(__file__).parent
ROWS = {
    "8 plain": "8 steps",
    "8 ours identity": "clock 2, identity",
    "8 ours learned 0": "clock 2, learned",
    "8 deepcache 2 b2": "DeepCache, interval 2",
    "8 fewer 5": "5 steps",
}
COLUMNS = 7


def main(folder: Path) -> None:
    """A row a method, a column a caption, all from the same noise."""
    rows = from_csv((HERE / "results.csv").read_text(encoding="utf-8"))
    known = {row["row"]: row for row in rows if row["stage"] == "methods"}
    cells = []
    for name, label in ROWS.items():
        row = known[name]
        for number in range(COLUMNS):
            file = folder / "cells" / row["cell"] / "images" / picture_name(number)
            made = read_settings(file) or {}
            gflops = 1000 * row["cost/tflops_conv_linear"]
            first = f"{label}: {gflops:.2f} GFLOPs"
            cells.append((file, first if number == 0 else str(made.get("prompt", ""))))
    sheet = grid(cells, COLUMNS).quantize(256, Image.Quantize.MAXCOVERAGE)
    write_png(HERE / "pictures.png", sheet, {})
    print(HERE / "pictures.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/experiment/reuse_peers"))
