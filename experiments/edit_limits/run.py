"""How memory and time of a video edit grow with its frames, and what a second process gains.

    python experiments/edit_limits/run.py [NEW_FOLDER]

Every edit runs in a process of its own, which tells the peak of its resident memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.media.clip_writing import Timing, write_clip
from edgegen.media.pictures import read_picture
from edgegen.runs.experiment import table_code
from edgegen.runs.finished import from_csv, to_csv

HERE = Path(__file__).parent
# The peak of a child that was started counts that of the parent: so it is asked itself.
EDIT = """
import sys
from edgegen.commands.edit import main
main(sys.argv[1:])
status = open("/proc/self/status").read()
print("PEAK", status.split("VmHWM:")[1].split()[0])
"""
FRAMES = (64, 256, 1024)
SHARED = 128  # frames of the edit that one and two processes make
ROUNDS = 3
SIZE = 96
Row = dict[str, Any]


def main(root: Path) -> None:
    """Measure; write the results and the table beside this file."""
    if root.exists():
        raise SystemExit(f"{root}: is there already; name a new folder")
    root.mkdir(parents=True)
    for count in (*FRAMES, SHARED):
        make_clip(root / f"{count}.mp4", count)
    rows = [measured(root, count, schedule) for schedule in ("frames", "steps") for count in FRAMES]
    for number in range(ROUNDS):  # in turn, for the machine may change its pace
        rows += [shared(root, processes, number) for processes in (1, 2)]
    text = to_csv(rows)
    (HERE / "results.csv").write_text(text, encoding="utf-8")
    table = table_code(HERE).table(from_csv(text))
    (HERE / "table.md").write_text(table, encoding="utf-8")
    print(table)


def make_clip(path: Path, count: int) -> None:
    """A textured picture that wanders, 25 frames a second."""
    wide = np.random.default_rng(0).integers(0, 256, (SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
    picture = np.kron(wide, np.ones((8, 8, 1), np.uint8))

    def frames() -> Iterator[np.ndarray]:
        for number in range(count):
            yield np.roll(picture, number, axis=1)[:SIZE, :SIZE]

    timing = Timing(Fraction(1, 25), list(range(count)), [1] * count)
    write_clip(path, frames(), timing)


def measured(root: Path, count: int, schedule: str) -> Row:
    """One edit of a clip, alone in a process."""
    found, peak = edit(root, f"{schedule}{count}", root / f"{count}.mp4", [f"schedule={schedule}"])
    return {"what": "length", "schedule": schedule, "frames": count, "peak_kb": peak} | found


def shared(root: Path, processes: int, number: int) -> Row:
    """The same edit by one process or by two, with one thread each."""
    name = f"by{processes}_{number}"
    found, _ = edit(root, name, root / f"{SHARED}.mp4", ["schedule=frames"], processes)
    return {"what": "shared", "processes": processes, "round": number} | found


def edit(root: Path, name: str, clip: Path, more: list[str], processes: int = 1) -> tuple[Row, int]:
    """Seconds and pictures of an edit, and the peak memory of its process in kB."""
    options = [f"video={clip}", "instruction=make it night", f"output={root / name}", "steps=2"]
    options += [f"output_dir={root / name}.run", "device=cpu", *more]
    alone = dict(os.environ, OMP_NUM_THREADS="1")
    started = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
        own = alone | (ranks | where if processes > 1 else {})
        own_options = options if rank == 0 else [*options, f"output_dir={root / name}.run{rank}"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", EDIT, *own_options],
                env=own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    peaks = []
    for process in started:
        said, failed = process.communicate()
        if process.returncode:
            raise SystemExit(f"{name}: {failed.strip().splitlines()[-1]}")
        peaks.append(int(said.rsplit("PEAK", 1)[1]))
    metrics = json.loads((root / f"{name}.run" / "metrics.json").read_text(encoding="utf-8"))
    pictures = [read_picture(file).tobytes() for file in sorted((root / name).glob("*.png"))]
    shutil.rmtree(root / name)
    known = f"{hash_of(pictures):08x}"
    return {"seconds": metrics["cost/seconds"], "pictures": f"p{known}"}, peaks[0]


def hash_of(pictures: list[bytes]) -> int:
    """A checksum of all pictures."""
    total = 0
    for each in pictures:
        total = zlib.crc32(each, total)
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/edit_limits").absolute())
