"""The first pictures of six kinds of quantization, unpicked: `pictures.png` beside this file.

    python experiments/quantization_table/pictures.py [FOLDER]

FOLDER is the experiment's, outputs/experiment/quantization_table by default, after `rows`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgegen.runs.cell_samples import first_pictures
from edgegen.runs.finished import from_csv
from edgegen.runs.pictures import write_png

HERE = Path(__file__).parent
ROWS = {
    "full": "full precision",
    "w8a8": "W8A8",
    "w4a8": "W4A8",
    "mixed, size of w4": "mixed bits",
    "lrqat w4 0": "W4, LR-QAT",
    "vq1d 2.125": "VQ, 2.125 bits",
}


def main(folder: Path) -> None:
    """A row a kind, a column a caption, all from the same noise."""
    rows = from_csv((HERE / "results.csv").read_text(encoding="utf-8"))
    known = {row["row"]: row for row in rows if row["stage"] == "rows"}
    labelled = {
        f"{label}: {known[name]['cost/stored_mb']:.1f} MB": known[name]
        for name, label in ROWS.items()
    }
    write_png(HERE / "pictures.png", first_pictures(folder / "cells", labelled), {})
    print(HERE / "pictures.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/experiment/quantization_table"))
