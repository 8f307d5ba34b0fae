"""The test loop alone: what it calls, what it leaves as it was, what it keeps."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgegen.data.asks import AskBatches
from edgegen.training.evaluation import EvaluationModule, run_test


class Pipe:
    """As much of a pipeline as the loop takes hold of."""

    def __init__(self) -> None:
        self.unet = nn.Linear(2, 2)
        self.components = {"unet": self.unet}
        self.device = torch.device("cpu")
        self.moved: list[torch.device] = []

    def to(self, device: torch.device) -> Pipe:
        self.moved.append(device)
        return self


class Means(nn.Module):
    name = "means"

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))


@contextmanager
def doubled(pipe):
    """Fails where it is entered in inference mode: what it makes there could not be undone."""
    plain = pipe.unet.weight
    pipe.unet.weight = nn.Parameter(plain.detach() * 2)
    assert not pipe.unet.weight.is_inference()
    try:
        yield
    finally:
        pipe.unet.weight = plain


@pytest.fixture
def loop(tmp_path):
    pipe, seen = Pipe(), []

    def draw(folder, places, cost):
        seen.append(("draw", list(places), pipe.unet.weight.sum().item()))
        folder.mkdir(exist_ok=True)
        with cost.batch(len(places)):
            pipe.unet(torch.ones(len(places), 2))
        files = [folder / f"{place}.png" for place in places]
        for place, file in zip(places, files, strict=True):
            Image.fromarray(np.full((4, 4, 3), place, np.uint8)).save(file)
        return files

    def prepare(folder, places):
        assert folder == tmp_path
        seen.append(("prepare", places, pipe.unet.weight.sum().item()))

    def run(draw=draw, methods=None):
        module = EvaluationModule(
            pipe,
            {"doubled": doubled} if methods is None else methods,
            AskBatches(5, 2),
            tmp_path,
            draw,
            {"steps": 3},
            backbones=[Means()],
            prepare=prepare,
        )
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        return run_test(trainer, module)

    run.pipe, run.seen = pipe, seen
    return run


def test_the_plain_model_prepares_and_the_method_draws(loop, tmp_path: Path) -> None:
    before = loop.pipe.unet.weight.clone()
    assert loop() is True
    plain = before.sum().item()
    assert loop.seen == [
        ("prepare", [0, 1, 2, 3, 4], plain),
        ("draw", [0, 1], pytest.approx(2 * plain)),
        ("draw", [2, 3], pytest.approx(2 * plain)),
        ("draw", [4, 4], pytest.approx(2 * plain)),
    ]
    assert torch.equal(loop.pipe.unet.weight, before)
    assert loop.pipe.moved == [torch.device("cpu")]
    assert not loop.pipe.unet._forward_hooks
    # Features of five pictures, though the last was drawn twice.
    assert len(list((tmp_path / "features").glob("means-*.safetensors"))) == 3


def test_a_failure_leaves_the_model_as_it_was(loop) -> None:
    before = loop.pipe.unet.weight.clone()

    def fails(folder, places, cost):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        loop(draw=fails)
    assert torch.equal(loop.pipe.unet.weight, before)
    assert not loop.pipe.unet._forward_hooks
    assert not loop.pipe.unet._forward_pre_hooks


def test_the_cost_of_the_longest_stretch_is_kept(loop, tmp_path: Path) -> None:
    loop()
    first = json.loads((tmp_path / "cost.json").read_text())
    assert first["settings"] == {"steps": 3}
    assert first["cost"]["images"] == 4  # of two batches: the first only warms up
    assert first["cost"]["metrics"]["cost/unet_calls"] == 1
    made = []

    def one_left(folder, places, cost):
        if not made:
            made.append(places)
            with cost.batch(len(places)):
                loop.pipe.unet(torch.ones(len(places), 2))
        return [folder / f"{place}.png" for place in places]

    loop(draw=one_left)
    assert made
    assert json.loads((tmp_path / "cost.json").read_text()) == first
