"""The first pictures of six methods side by side, unpicked: `pictures.png` beside this file.

    python experiments/reuse_peers/pictures.py [FOLDER]

FOLDER is the experiment's, outputs/experiment/reuse_peers by default, after the stage `methods`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgegen.runs.cell_samples import first_pictures
from edgegen.runs.finished import from_csv
from edgegen.runs.pictures import write_png

HERE = Path(__file__).parent
ROWS = {
    "8 plain": "8 steps",
    "8 ours identity": "clock 2, identity",
    "8 ours solution 0": "clock 2, learned",
    "8 ours solution span 0": "span 2, learned",
    "8 deepcache 2 b2": "DeepCache, interval 2",
    "8 fewer 6": "6 steps",
}


def main(folder: Path) -> None:
    """A row a method, a column a caption, all from the same noise."""
    rows = from_csv((HERE / "results.csv").read_text(encoding="utf-8"))
    known = {row["row"]: row for row in rows if row["stage"] == "methods"}
    labelled = {
        f"{label}: {1000 * known[name]['cost/tflops_conv_linear']:.2f} GFLOPs": known[name]
        for name, label in ROWS.items()
    }
    write_png(HERE / "pictures.png", first_pictures(folder / "cells", labelled), {})
    print(HERE / "pictures.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/experiment/reuse_peers"))
