"""Attention that is known, on a grid small enough to count by hand."""

import pytest
import torch

from edgegen.metrics.video.correspondence import landing, token_grid, token_places

GRID = (3, 4)


def onto(*tokens: int, keys: int = 12) -> torch.Tensor:
    """Every row looks at the tokens given, equally."""
    weights = torch.zeros(12, keys)
    weights[:, list(tokens)] = 1 / len(tokens)
    return weights


def places(row: float, column: float) -> torch.Tensor:
    return torch.tensor([row, column]).expand(1, 12, 2)


SEEN = torch.ones(1, 12, dtype=torch.bool)


def test_what_lands_within_a_token_of_the_place_is_a_hit() -> None:
    # The place is row 1, column 1: the tokens 0–2, 4–6 and 8–10 are around it.
    found = landing(onto(5), places(1, 1), SEEN, GRID)
    assert (found.anchors, found.hit) == (1, 1)
    assert found.chance == pytest.approx(9 / 12)
    assert landing(onto(3, 11), places(1, 1), SEEN, GRID).hit == 0
    assert landing(onto(0, 3), places(1, 1), SEEN, GRID).hit == pytest.approx(0.5)
    # In a corner there are four, and between tokens two by two.
    assert landing(onto(0), places(0, 0), SEEN, GRID).chance == pytest.approx(4 / 12)
    between = landing(onto(0, 2), places(0.5, 0.5), SEEN, GRID)
    assert (between.hit, between.chance) == (pytest.approx(0.5), pytest.approx(4 / 12))
    assert landing(onto(5, 6), places(1, 1), SEEN, GRID, radius=0).hit == pytest.approx(0.5)


def test_what_stays_in_the_frame_is_told_apart() -> None:
    """Keys: 12 of the frame, 12 of each of two anchors; half, a quarter, a quarter."""
    weights = torch.cat([onto(0) / 2, onto(5) / 4, onto(3) / 4], 1)
    both = torch.ones(2, 12, dtype=torch.bool)
    two = places(1, 1).expand(2, -1, -1)
    found = landing(weights, two, both, GRID)
    assert found.anchors == pytest.approx(0.5)
    assert found.hit == pytest.approx(0.5)  # all in the first anchor, none in the second
    second_hidden = torch.stack([SEEN[0], ~SEEN[0]])
    assert landing(weights, two, second_hidden, GRID).hit == pytest.approx(1)
    hidden = landing(weights, two, ~both, GRID)
    assert (hidden.hit, hidden.chance) == (None, None)
    assert hidden.anchors == pytest.approx(0.5)


def test_attention_that_is_the_same_everywhere_is_chance() -> None:
    where = torch.rand(2, 12, 2, generator=torch.Generator().manual_seed(0)) * 3
    seen = torch.ones(2, 12, dtype=torch.bool)
    found = landing(torch.full((12, 24), 1 / 24), where, seen, GRID)
    assert found.hit == pytest.approx(found.chance)


def test_the_place_of_a_token_follows_the_flow() -> None:
    """Frames of 12 × 16 pixels, tokens of 4: a flow of 4 to the right and 2 up."""
    flow = torch.tensor([4.0, -2.0])[:, None, None].expand(2, 12, 16)
    seen = torch.ones(12, 16, dtype=torch.bool)
    seen[:, 8:] = False
    where, known = token_places(flow, seen, GRID)
    rows, columns = torch.arange(12) // 4, torch.arange(12) % 4
    torch.testing.assert_close(where, torch.stack([rows - 0.5, columns + 1], -1).double())
    assert torch.equal(known, columns < 2)


def test_levels_halve_and_round_up() -> None:
    assert token_grid((9, 12), 108) == (9, 12)
    assert token_grid((9, 12), 30) == (5, 6)
    assert token_grid((9, 12), 9) == (3, 3)
    with pytest.raises(ValueError, match="31 tokens fit no level of latents of 9 × 12"):
        token_grid((9, 12), 31)
    with pytest.raises(ValueError, match="do not fit 3 × 4"):
        landing(torch.ones(9, 12) / 12, places(0, 0), SEEN, GRID)
