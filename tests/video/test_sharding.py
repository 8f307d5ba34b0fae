"""Two gloo processes at one clip give the file that one gives, and share the work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch.distributed as dist
from video_models import MadeClip, make_pipe

from edgegen.video import VideoEditor
from edgegen.video.sharding import Shard, shard
from processes import call


def edit_alone_and_by_two(folder: Path) -> None:
    """One process alone, then two forked from the same one, for both schedules."""
    pipe = make_pipe(folder)

    def child(name: str, schedule: str, rank: int | None = None) -> int:
        pid = os.fork()
        if pid:
            return pid
        status, work = 1, []
        try:
            if rank is not None:
                store = f"file://{folder / schedule}.store"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
            editor = VideoEditor(pipe, {"scenes": 2}, schedule=schedule, chunk=2)
            made = editor.edit(
                *(MadeClip(13), folder / name, "make it red"),
                steps=3,
                progress=lambda frames, total: work.append((frames, total)),
            )
            assert made.processes == (1 if rank is None else 2)
            told = {"done": sum(frames for frames, _ in work), "total": work[-1][1]}
            (folder / f"{schedule}{rank}.json").write_text(json.dumps(told))
            status = 0
        finally:
            os._exit(status)

    for schedule in ("frames", "steps"):
        alone = child(f"one-{schedule}.mkv", schedule)
        assert os.waitpid(alone, 0)[1] == 0
        both = [child(f"two-{schedule}.mkv", schedule, rank) for rank in (0, 1)]
        assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]


def test_two_processes_give_the_file_of_one(tmp_path: Path) -> None:
    call(edit_alone_and_by_two, tmp_path, log=tmp_path / "log")
    for schedule in ("frames", "steps"):
        one, two = (tmp_path / f"{each}-{schedule}.mkv" for each in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        shares = [
            json.loads((tmp_path / f"{schedule}{rank}.json").read_text()) for rank in (None, 0, 1)
        ]
        assert all(each["done"] == pytest.approx(each["total"]) for each in shares)
        # Two anchors each, and six chunks of the eleven others between them.
        assert [each["total"] for each in shares] == [13, 8, 7]
    assert not list(tmp_path.glob(".*"))


def test_one_process_has_it_all() -> None:
    with shard() as alone:
        assert alone == Shard(0, 1)
        alone.wait()
    assert alone.own([1, 2, 3]) == [1, 2, 3]
    parts = [Shard(rank, 3).own(range(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
