from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgegen.reuse.predictor import Extrapolation, lagrange_weights


@pytest.mark.parametrize("order", [0, 1, 2])
def test_exact_on_polynomials(order: int) -> None:
    """Degree d is predicted without error by order d, at uneven timesteps."""
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(order + 1, 3, 4, generator=generator, dtype=torch.float64)

    def features(time: float) -> tuple[torch.Tensor, ...]:
        value = sum(c * (time / 1000) ** k for k, c in enumerate(coefficients))
        return (value, 2 * value)

    predictor, past = Extrapolation(order), []
    for time in (999.0, 870.0, 640.0, 500.0):
        predictor.remember(past, time, features(time))
    assert len(past) == order + 1
    torch.testing.assert_close(predictor.at(past, 410.0), features(410.0))


def test_weights_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        nodes, values = rng.permutation(1000)[:count], rng.normal(size=count)
        fitted = np.polyval(np.polyfit(nodes, values, count - 1), 321.0)
        assert np.dot(lagrange_weights(list(nodes), 321.0), values) == pytest.approx(fitted)


def test_degree_follows_what_there_is() -> None:
    past: list[Any] = []
    predictor = Extrapolation(2)
    predictor.remember(past, 900.0, (torch.tensor(1.0),))
    assert predictor.at(past, 700.0) == (1.0,)
    predictor.remember(past, 800.0, (torch.tensor(2.0),))
    assert predictor.at(past, 700.0) == (3.0,)


def test_second_evaluation_at_a_timestep_counts() -> None:
    """Heun evaluates there twice: distinct nodes, and the later value."""
    past: list[Any] = []
    predictor = Extrapolation(1)
    for time, value in ((900.0, 1.0), (800.0, 5.0), (800.0, 2.0)):
        predictor.remember(past, time, (torch.tensor(value),))
    assert predictor.at(past, 700.0) == (3.0,)


def test_unknown_order() -> None:
    with pytest.raises(ValueError, match="order=3"):
        Extrapolation(3)
