from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from edgegen.data.modules import StreamDataModule
from edgegen.data.stream import Stream, StreamSampler, sample_rng


def view(item: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.tensor([item, rng.integers(2**40)])


def stream(seed: int = 3) -> Stream:
    return Stream([10, 11, 12, 13, 14, 15, 16], view, seed)


def read(count: int, batch: int, start: int = 0, workers: int = 0, seed: int = 3) -> torch.Tensor:
    loader = DataLoader(stream(seed), batch, sampler=StreamSampler(start), num_workers=workers)
    batches = iter(loader)
    return torch.cat([next(batches) for _ in range(-(-count // batch))])[:count]


WHOLE = torch.stack([stream()[number] for number in range(60)])


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (4, 0), (9, 0), (4, 1), (4, 2)])
def test_batches_and_workers_change_nothing(batch: int, workers: int) -> None:
    assert torch.equal(read(36, batch, workers=workers), WHOLE[:36])


def test_any_sample_is_drawn_without_the_others() -> None:
    for number in (59, 0, 33, 7, 8):
        assert torch.equal(stream()[number], WHOLE[number])


@pytest.mark.parametrize("start", [1, 6, 7, 20, 41])
def test_it_goes_on_where_it_stopped(start: int) -> None:
    assert torch.equal(read(19, 5, start=start), WHOLE[start : start + 19])


@pytest.mark.parametrize(("world", "batch"), [(2, 3), (3, 2)])
def test_ranks_share_the_samples_of_one_process(world: int, batch: int) -> None:
    loaders = [
        iter(DataLoader(stream(), batch, sampler=StreamSampler(5, rank, world)))
        for rank in range(world)
    ]
    for step in range(4):
        together = torch.cat([next(loader) for loader in loaders])
        first = 5 + step * batch * world
        alone = WHOLE[first : first + batch * world]
        assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, alone.tolist()))


def test_every_pass_has_each_item_once_in_its_own_order() -> None:
    passes = WHOLE[:56, 0].view(8, 7)
    for one in passes:
        assert sorted(one.tolist()) == [10, 11, 12, 13, 14, 15, 16]
    assert len({tuple(one.tolist()) for one in passes}) > 6
    assert len(set(WHOLE[:, 1].tolist())) == 60


def test_seeds_differ_and_do_not_overlap() -> None:
    other = torch.stack([stream(seed=4)[number] for number in range(60)])
    assert not torch.equal(other[:, 0], WHOLE[:, 0])
    assert not set(other[:, 1].tolist()) & set(WHOLE[:, 1].tolist())


def test_large_numbers() -> None:
    assert sample_rng(2**40, 10**12).integers(2**60) != sample_rng(2**40, 10**12 + 1).integers(
        2**60
    )


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        Stream([], view, 0)


class Trainer:
    """What a data module asks of Lightning's."""

    global_rank, world_size, accumulate_grad_batches, global_step = 0, 1, 1, 0


class Numbers(StreamDataModule):
    def setup(self, stage: str | None = None) -> None:
        self.train_set = stream()


def module(batch: int, **trainer: int) -> Numbers:
    made = Numbers(batch, seed=3)
    made.setup()
    made.trainer = type("T", (Trainer,), trainer)()
    return made


def test_position_in_checkpoints_survives_another_batch_size() -> None:
    first = module(4, world_size=2)
    batches = iter(first.train_dataloader())
    for _ in range(3):
        next(batches)
    first.trainer.global_step = 3
    saved = first.state_dict()
    assert saved == {"samples_seen": 24}
    second = module(6, global_step=3, accumulate_grad_batches=2)
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    batch = next(iter(second.train_dataloader()))
    assert torch.equal(batch, WHOLE[24:30])
    second.trainer.global_step = 5
    assert second.state_dict() == {"samples_seen": 24 + 2 * 12}


def test_position_without_a_trainer() -> None:
    alone = Numbers(4)
    alone.load_state_dict({"samples_seen": 8})
    assert alone.state_dict() == {"samples_seen": 8}
