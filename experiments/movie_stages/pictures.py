"""Frames of the demo's clips, source and what both editors made of it: `film.png`.

    python experiments/movie_stages/pictures.py [FOLDER]

FOLDER is the demo's, outputs/demo by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edgegen.media.clips import open_clip
from edgegen.runs.pictures import write_png

HERE = Path(__file__).parent
COUNT = 4  # frames shown
PANES, GAP = 3, 4  # in the demo's clips: source and two editors, so many pixels apart
SIZE = (192, 108)


def main(folder: Path) -> None:
    """One row of the source, then two of each clip: frames at equal intervals."""
    rows: list[list[np.ndarray]] = []
    for path in sorted((folder / "clips").glob("[0-9].mp4")):
        frames = [frame.pixels for frame in open_clip(path)]
        chosen = [frames[n] for n in np.linspace(0, len(frames) - 1, COUNT).round().astype(int)]
        width = (chosen[0].shape[1] - GAP * (PANES - 1)) // PANES
        panes = [
            [frame[:, n * (width + GAP) :][:, :width] for frame in chosen] for n in range(PANES)
        ]
        rows += panes[1 if rows else 0 :]
    step = SIZE[0] + GAP, SIZE[1] + GAP
    film = Image.new("RGB", (COUNT * step[0] - GAP, len(rows) * step[1] - GAP), "white")
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            small = Image.fromarray(frame).resize(SIZE, Image.Resampling.LANCZOS)
            film.paste(small, (x * step[0], y * step[1]))
    write_png(HERE / "film.png", film.quantize(256), {})
    print(HERE / "film.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo"))
