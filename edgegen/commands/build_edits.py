"""`python scripts/build_edits.py output=DIR`: crops, and a teacher's paintings of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from PIL import Image

from ..assets import file_sha256
from ..data.instructions import PAINTINGS
from ..data.painting import SPLITS, PaintedCrops, Painter, build_crops
from ..data.photos import find_media, packaged_photos
from ..runs.pictures import grid, write_png
from ..runs.record import Run
from ._main import command
from ._numbers import whole_number


@command("build_edits", free_text=("output",))
def main(cfg: DictConfig, run: Run) -> None:
    """Crop, paint, and show some of it."""
    counts = {key: whole_number(cfg, key, 1) for key in ("crops", "held_out", "frames")}
    shown, seed = whole_number(cfg, "shown", 0), whole_number(cfg, "seed", 0)
    size = whole_number(cfg, "size", 32)
    if size % 8:
        raise ValueError(f"size={size}: must be a multiple of 8 pixels")
    painter = Painter()
    files = packaged_photos() + find_media(list(cfg.photo_folders), list(cfg.exclude))
    output = Path(cfg.output).expanduser() if cfg.output else run.folder / "edits"
    index = build_crops(
        output,
        files,
        painter,
        file_sha256(painter.weights_file()),
        size=size,
        train=counts["crops"],
        held_out=counts["held_out"],
        frames=counts["frames"],
        seed=seed,
    )
    for file in [*files, painter.weights_file()]:
        run.used_file(file)
    for split in SPLITS:
        crops = PaintedCrops(output, split)
        seen = Counter(map(crops.file, range(len(crops))))
        run.log({f"edits/crops_{split}": len(crops), f"edits/files_{split}": len(seen)})
        print(f"{split}: {len(crops)} crops of {len(seen)} files")
    run.info(output={"path": str(output), "teacher": index["teacher"]})
    if shown:
        crops = PaintedCrops(output, "train")
        cells = []
        for number in range(min(shown, len(crops))):
            cells.append((Image.fromarray(crops.crop(number)), crops.file(number)))
            for name in PAINTINGS:
                cells.append((Image.fromarray(crops.painting(number, name)), name))
        write_png(run.dir / "paintings.png", grid(cells, 2 * (1 + len(PAINTINGS)), least=96), {})
