"""The first drawings, edited without and with reuse, unpicked: `edits.png` beside this file.

    python experiments/clockwork_editing/pictures.py [FOLDER]

FOLDER is the experiment's, outputs/experiment/clockwork_editing by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from edgegen.runs.finished import from_csv
from edgegen.runs.pictures import write_png

HERE = Path(__file__).parent
STEPS, SHARE = 25, 0.5  # of the columns of a run's own grid


def main(folder: Path) -> None:
    """Sources; plain edits; edits with reuse, where reuse changes most: over the fewest steps."""
    rows = from_csv((HERE / "results.csv").read_text(encoding="utf-8"))
    cells = {r["how"]: r["cell"] for r in rows if r["stage"] == "edits" and r["steps"] == STEPS}
    plain, reused = (
        Image.open(folder / "cells" / cells[how] / "grid.png") for how in ("plain", "identity")
    )
    half, width = plain.height // 2, round(plain.width * SHARE)
    made = Image.new("RGB", (width, plain.height + half))
    made.paste(plain, (0, 0))
    made.paste(reused.crop((0, half, width, reused.height)), (0, plain.height))
    colours = made.quantize(256, Image.Quantize.MAXCOVERAGE)
    write_png(HERE / "edits.png", colours, {})
    print(HERE / "edits.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/experiment/clockwork_editing"))
