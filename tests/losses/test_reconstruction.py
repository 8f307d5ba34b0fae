from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torchmetrics.functional.image import peak_signal_noise_ratio

from edgegen.losses.reconstruction import (
    gradient_l1,
    kl_to_standard_normal,
    psnr,
    reconstruction_loss,
)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(2, 3, 3, 10, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_psnr_of_each_picture_as_in_torchmetrics(pair) -> None:
    for prediction, target, got in zip(*pair, psnr(*pair), strict=True):
        wanted = peak_signal_noise_ratio(prediction, target, data_range=(-1.0, 1.0))
        torch.testing.assert_close(got, wanted)


def test_psnr_as_in_scikit_image(pair) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    left, right = (x[0].numpy().astype(np.float64) for x in pair)
    wanted = metrics.peak_signal_noise_ratio(left, right, data_range=2)
    assert psnr(*pair)[0].item() == pytest.approx(wanted, abs=1e-4)


def test_psnr_of_a_perfect_picture_is_finite(pair) -> None:
    assert psnr(pair[0], pair[0]).min() > 100
    assert torch.isfinite(psnr(pair[0], pair[0])).all()


def test_kl_as_in_torch_distributions() -> None:
    mean, logvar = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    wanted = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), wanted)
    assert kl_to_standard_normal(torch.zeros(3), torch.zeros(3)) == 0


def test_gradient_of_an_edge() -> None:
    target = torch.zeros(1, 1, 4, 5)
    prediction = target.clone()
    prediction[..., 2:] = 1  # an edge of height 1 in each of 4 rows, among 4 · 4 differences
    assert gradient_l1(prediction, target).item() == pytest.approx(4 / 16)
    assert gradient_l1(target + 7, target) == 0


def test_reconstruction_loss_by_hand(pair) -> None:
    prediction, target = (x.double().numpy() for x in pair)
    error = prediction - target
    wanted = 0.5 * (np.abs(error).mean() + 4 * (error**2).mean())
    slopes = np.abs(np.diff(error, axis=-1)).mean() + np.abs(np.diff(error, axis=-2)).mean()
    assert reconstruction_loss(*pair, gradient=0.25).item() == pytest.approx(
        wanted + 0.25 * slopes, rel=1e-5
    )
