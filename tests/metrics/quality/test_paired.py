"""Paired errors by hand, and which of two methods is nearer to the truth."""

import pytest
import torch
from torch import Tensor, nn

from edgegen.metrics.quality.bootstrap import paired_difference
from edgegen.metrics.quality.efflite0 import EffLite0
from edgegen.metrics.quality.paired import (
    PairedError,
    feature_errors,
    paired_errors,
    pixel_errors,
)


class Mean(nn.Module):
    """The three channels' means."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))


def test_errors_by_hand() -> None:
    truth = torch.full((2, 3, 4, 4), 0.5)
    pictures = truth.clone()
    pictures[0] += 0.25
    pictures[1, 0, 0, 0] = 1.0  # one of 48 values is off by a half
    torch.testing.assert_close(
        pixel_errors(pictures, truth), torch.tensor([0.25, 0.5 / 48**0.5]).double()
    )
    found = paired_errors(pictures, truth, Mean())
    by_hand = torch.tensor([0.25, 0.5 / 16 / 3**0.5]).double()
    torch.testing.assert_close(found[:, 1], by_hand, rtol=1e-5, atol=0)
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert feature_errors(first, second).item() == pytest.approx((25 / 2) ** 0.5)


def test_features_are_those_of_efflite0() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, truth = (torch.rand(3, 3, 24, 24, generator=generator) for _ in range(2))
    backbone = EffLite0()
    known = (backbone(pictures) - backbone(truth)).pow(2).mean(1).sqrt()
    metric = PairedError(resamples=50)
    metric.update(pictures[:2], truth[:2])
    metric.update(pictures[2:], truth[2:])
    found = metric.compute()
    assert found["quality/ode_efflite0"].item() == pytest.approx(known.mean().item(), rel=1e-4)
    pixels = pixel_errors(pictures, truth)
    assert found["quality/ode_rmse"].item() == pytest.approx(pixels.mean().item())
    assert found["quality/ode_rmse_n"] == 3
    torch.testing.assert_close(metric.samples()[0][:, 0], pixels)


def test_methods_are_told_apart_picture_by_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(80, 3, 8, 8, generator=generator) * 0.5 + 0.25
    hard = torch.rand(80, 1, 1, 1, generator=generator) * 0.2  # how far both miss
    noise = torch.randn(truth.shape, generator=generator)
    errors = []
    for strength in (1.0, 1.03):
        metric = PairedError(Mean(), resamples=50)
        metric.update(truth + strength * hard * noise, truth)
        errors.append(metric.samples()[0][:, 0].numpy())
    found = paired_difference(errors[1], errors[0])
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(0.03 * errors[0].mean(), rel=1e-4)
    # Unpaired, three hundredths drown in how much pictures differ.
    assert found.value < errors[0].std() / 80**0.5


def test_pairs_must_fit() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_errors(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9), Mean())
    with pytest.raises(ValueError, match="one shape"):
        feature_errors(torch.zeros(2, 3), torch.zeros(3, 3))
