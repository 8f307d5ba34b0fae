from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn

from edgegen.cost.step_change import observe_steps, relative_change


class Plays(nn.Module):
    """Puts out the next of `values` each time it runs."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        self.values = iter(values)

    def forward(self) -> Any:
        return next(self.values)


class Root(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self) -> None:
        for part in self.parts:
            part()


def features(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).reshape(len(rows), 1, -1)


def test_relative_change_by_hand() -> None:
    before = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    now = torch.tensor([[3.0, 4.0], [6.0, 8.0], [1.0, 0.0], [0.0, 0.0]])
    # 5/5, 5/10, nothing changed, nothing there
    assert relative_change(now, before).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_half_precision_neither_overflows_nor_rounds_away() -> None:
    now = torch.full((1, 4, 100, 100), 300.0, dtype=torch.float16)
    assert relative_change(now, now * 0.5).item() == 0.5


def test_means_over_samples_and_trajectories() -> None:
    part = Plays(
        features([3.0, 4.0], [0.0, 1.0]),
        features([6.0, 8.0], [0.0, 1.0]),  # 0.5 and 0
        features([6.0, 8.0], [0.0, 2.0]),  # 0 and 0.5
        features([1.0, 0.0], [0.0, 1.0]),  # another trajectory
        features([2.0, 0.0], [0.0, 1.0]),  # 0.5 and 0
        features([2.0, 0.0], [0.0, 1.0]),  # 0 and 0
    )
    root = Root(part)
    with observe_steps(root, {"part": part}) as changes:
        for _ in range(2):
            changes.begin()
            for _ in range(3):
                root()
    assert changes.means() == {"part": [(0.5 + 0 + 0.5 + 0) / 4, (0 + 0.5 + 0 + 0) / 4]}


def test_the_first_tensor_counts_and_embeddings_do_not() -> None:
    pair = Plays((features([2.0]), features([9.0])), (features([4.0]), features([9.0])))
    flat = Plays(torch.ones(2, 3), torch.zeros(2, 3))  # an embedding of the timestep
    root = Root(pair, flat)
    with observe_steps(root, {"pair": pair, "flat": flat}) as changes:
        root()
        root()
    assert changes.means() == {"pair": [0.5]}


def test_runs_in_one_evaluation_are_compared_run_by_run() -> None:
    part = Plays(*(features([value]) for value in (1.0, 10.0, 2.0, 10.0)))
    root = Root(part, part)
    with observe_steps(root, {"part": part}) as changes:
        root()
        root()
    assert changes.means() == {"part": [(0.5 + 0.0) / 2]}


def test_written_in_place_afterwards() -> None:
    kept = features([2.0])
    part = Plays(kept, features([4.0]))
    root = Root(part)
    with observe_steps(root, {"part": part}) as changes:
        root()
        kept.fill_(4.0)
        root()
    assert changes.means() == {"part": [0.5]}


def test_hooks_go() -> None:
    part = Plays(features([1.0]))
    root = Root(part)
    root()
    with pytest.raises(StopIteration), observe_steps(root, {"part": part, "root": root}):
        root()
    assert not part._forward_hooks
    assert not root._forward_pre_hooks


def test_unet_in_a_pipeline(pipe: StableDiffusionPipeline) -> None:
    """Against the outputs collected one by one, both guidance branches in each."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    seen: list[torch.Tensor] = []
    unet = pipe.unet
    handle = unet.mid_block.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    with observe_steps(unet, {"mid": unet.mid_block, "unet": unet}) as changes:
        generator = torch.Generator().manual_seed(0)
        pipe("a", num_inference_steps=3, generator=generator, output_type="latent")
    handle.remove()
    expected = [
        torch.stack([(b - a).norm() / b.norm() for a, b in zip(old, new, strict=True)]).mean()
        for old, new in pairwise(seen)
    ]
    assert len(seen) == 3
    assert seen[0].shape[0] == 2
    assert changes.means()["mid"] == pytest.approx([float(value) for value in expected], rel=1e-5)
    assert len(changes.means()["unet"]) == 2
