from __future__ import annotations

from typing import Any

import pytest
import torch
from reuse_models import draw, make_pipe, texts

from edgegen.reuse import Stage, observe
from edgegen.reuse.levels import LevelMoves, LevelNoise, visit_levels


@pytest.fixture
def embedded() -> Any:
    return make_pipe("embedded")


class Keep:
    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, level: int, step: int, features: torch.Tensor) -> None:
        assert (level, step) not in self.seen
        self.seen[level, step] = features.clone()


def test_levels_are_the_cuts_of_clockwork(any_pipe: Any) -> None:
    keep = Keep()
    plain = draw(any_pipe)
    with visit_levels(any_pipe, keep) as levels:
        assert torch.equal(draw(any_pipe), plain)
    assert levels == len(any_pipe.unet.up_blocks)
    assert set(keep.seen) == {(level, step) for level in range(levels) for step in range(4)}
    for level in range(1, levels):
        r_out: list[torch.Tensor] = []

        def take(seen: Any, r_out: list[torch.Tensor] = r_out) -> torch.Tensor:
            r_out.append(seen.r_out.clone())
            return seen.r_out

        with observe(any_pipe.unet, Stage(level), take):
            draw(any_pipe)
        assert len(r_out) == 4
        for step, features in enumerate(r_out):
            assert torch.equal(keep.seen[level, step], features)
    last = any_pipe.unet.conv_norm_out
    inputs: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    draw(any_pipe)
    handle.remove()
    assert torch.equal(keep.seen[0, 3], inputs[3])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_noise_has_the_size_asked_for() -> None:
    features = torch.randn(6, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    features *= torch.tensor([1, 2, 3, 4, 5, 100.0])[:, None, None, None]
    noise = LevelNoise(1, 2, 0.3, generators(0, 1))
    assert noise(0, 2, features) is None
    assert noise(1, 1, features) is None
    change = noise(1, 2, features) - features
    size = change.square().mean((1, 2, 3)).sqrt() / features.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(size, torch.full((6,), 0.3), rtol=0.05, atol=0)
    # One noise a picture, the same in all three guidance branches, and another picture another.
    direction = change.flatten(1) / change.flatten(1).norm(dim=1, keepdim=True)
    alike = direction @ direction.T
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(3, 3)
    torch.testing.assert_close(alike, expected, rtol=0, atol=0.08)
    with pytest.raises(ValueError, match="2 generators for a batch of 5"):
        LevelNoise(1, 2, 0.3, generators(0, 1))(1, 2, features[:5])


@pytest.mark.parametrize(("level", "step"), [(0, 0), (1, 2), (3, 3)])
def test_noise_acts_from_its_step_on_and_is_gone_afterwards(
    embedded: Any, level: int, step: int
) -> None:
    plain = Keep()
    with visit_levels(embedded, plain):
        untouched = draw(embedded)
    noise, noisy = LevelNoise(level, step, 0.5, generators(0)), Keep()

    def both(at: int, when: int, features: torch.Tensor) -> torch.Tensor | None:
        noisy(at, when, features)
        return noise(at, when, features)

    with visit_levels(embedded, both):
        changed = draw(embedded)
    assert not torch.equal(changed, untouched)
    for place, features in plain.seen.items():
        at, when = place
        # Deeper levels of the same evaluation came before it.
        same = when < step or (when == step and at >= level)
        assert torch.equal(noisy.seen[place], features) == same, place
    assert torch.equal(draw(embedded), untouched)
    small = LevelNoise(level, step, 1e-4, generators(0))
    with visit_levels(embedded, small):
        little = (draw(embedded) - untouched).norm()
    assert 0 < little < 0.01 * (changed - untouched).norm()


def test_a_picture_is_disturbed_alike_in_any_batch(embedded: Any) -> None:
    given = texts(2)
    drawn = []
    for batch in ((1,), (1, 2)):
        start = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators(*batch)])
        mine = {name: tensor[: len(batch)] for name, tensor in given.items()}
        with visit_levels(embedded, LevelNoise(1, 1, 0.5, generators(*batch))):
            drawn.append(draw(embedded, latents=start, **mine))
    alone, together = drawn
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    assert (together[1] - together[0]).abs().max() > 0.1


def test_moves_in_closed_form() -> None:
    moves = LevelMoves()
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0]])[:, :, None, None]
    for run in range(2):  # a second batch starts anew
        moves(0, 0, features)
        moves(0, 1, features * torch.tensor([3.0, 1.0])[:, None, None, None])  # moves 2 and 0
        moves(0, 2, torch.zeros_like(features))  # moves 1 and 1
        moves(1, 0, features)
        moves(1, 1, features + run)
        moves(1, 2, features + run)
    found = moves.mean()
    assert found[0][1:] == pytest.approx([1.0, 1.0])
    # |(1, 1)| over 5 and over 1, in one of two batches.
    assert found[1][1:] == pytest.approx([(2**0.5 / 5 + 2**0.5) / 4, 0.0])
    assert found[0][0] != found[0][0]  # nothing to compare with


def test_what_cannot_be_visited(embedded: Any) -> None:
    with pytest.raises(ValueError, match="no scheduler"), visit_levels(embedded.unet, Keep()):
        pass
    with pytest.raises(ValueError, match="no UNet"), visit_levels(object(), Keep()):
        pass
