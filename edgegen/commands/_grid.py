"""Working through the cells of a grid, by one process or several, each cell once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..runs.record import is_finished, read_record
from ._cells import Cell
from ._workers import helped


def run_grid(cells: Sequence[Cell], root: Path, title: str, workers: int = 1) -> list[Cell]:
    """Run the cells, each once, in `root/ID`, but for those that are finished there.

    A cell that fails is told on stderr and passed over; it is tried again when the grid is run
    again. Returns the cells without repeats, of which `is_finished` tells which came to their end.
    """
    cells = list({cell.id: cell for cell in cells}.values())
    todo = sum(not is_finished(root / cell.id) for cell in cells)
    with (
        tqdm(total=len(cells), initial=len(cells) - todo, desc=title, unit="cell") as bar,
        helped(min(workers, todo) - 1, _help, cells, root),
    ):
        _work(cells, root, bar.update)
    return cells


def error_of(folder: Path) -> str | None:
    """Why the run in a folder came to no end, or None where it did."""
    record = read_record(folder)
    return None if record.get("status") == "finished" else record.get("error", "not begun")


def _help(cells: Sequence[Cell], root: Path) -> None:
    _work(cells, root, lambda: None)


def _work(cells: Sequence[Cell], root: Path, done: Callable[[], object]) -> None:
    began = time.time()
    open_ = [cell for cell in cells if not is_finished(root / cell.id)]
    for wait in (False, True):  # first what nobody is at, then what somebody may have left
        left = []
        for cell in open_:
            if _failed_since(root / cell.id, began):
                done()
                continue
            try:
                made = cell.run(root, wait=wait)
            except Exception as error:
                tqdm.write(f"cell {cell.id}: {type(error).__name__}: {error}", file=sys.stderr)
                made = root / cell.id
            if made is None:
                left.append(cell)
            else:
                done()
        open_ = left


def _failed_since(folder: Path, began: float) -> bool:
    file = folder / "run.json"
    if not file.is_file() or file.stat().st_mtime < began:
        return False
    return read_record(folder).get("status") == "failed"
