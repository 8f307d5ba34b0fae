from __future__ import annotations

from pathlib import Path

import torch

from edgegen.data.shards import Rows, shards

COUNT, SIZE = 10, 4


def row(number: int) -> Rows:
    return {"value": torch.tensor([number, number**2])}


def check(found: list[Rows]) -> None:
    assert [len(each["value"]) for each in found] == [4, 4, 2]
    values = torch.cat([each["value"] for each in found])
    assert torch.equal(values, torch.stack([row(number)["value"] for number in range(COUNT)]))


def test_rows_come_in_order_with_a_folder_and_without(tmp_path: Path) -> None:
    check(shards(None, COUNT, SIZE, row, "rows"))
    made: list[int] = []

    def counted(number: int) -> Rows:
        made.append(number)
        return row(number)

    check(shards(tmp_path, COUNT, SIZE, counted, "rows"))
    check(shards(tmp_path, COUNT, SIZE, counted, "rows"))
    assert sorted(made) == list(range(COUNT))


def test_what_another_process_has_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def slow(number: int) -> Rows:
        if not made:
            shards(tmp_path, COUNT, SIZE, row, "rows")
        made.append(number)
        return row(number)

    check(shards(tmp_path, COUNT, SIZE, slow, "rows"))
    assert len(made) <= SIZE  # of one shard
