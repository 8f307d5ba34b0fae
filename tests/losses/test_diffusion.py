from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from edgegen.losses.diffusion import denoising_loss, denoising_target, diffuse, min_snr_weight

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, noise, timesteps and their ᾱ, double precision."""
    generator = torch.Generator().manual_seed(0)
    sample, noise = torch.randn(2, 6, 4, 8, 8, generator=generator, dtype=torch.double)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    return sample, noise, timesteps, SCHEDULER.alphas_cumprod[timesteps].double()


def test_diffused_as_in_diffusers(batch) -> None:
    sample, noise, timesteps, alpha_bar = batch
    wanted = SCHEDULER.add_noise(sample, noise, timesteps)
    torch.testing.assert_close(diffuse(sample, noise, alpha_bar), wanted, rtol=1e-6, atol=1e-6)


def test_targets_as_in_diffusers(batch) -> None:
    sample, noise, timesteps, alpha_bar = batch
    wanted = SCHEDULER.get_velocity(sample, noise, timesteps)
    got = denoising_target(sample, noise, alpha_bar, "v_prediction")
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(denoising_target(sample, noise, alpha_bar, "epsilon"), noise)


def x0_of(output, noisy, alpha_bar, kind):
    """The clean sample that a network's output stands for."""
    a = alpha_bar.view(-1, 1, 1, 1)
    if kind == "epsilon":
        return (noisy - (1 - a).sqrt() * output) / a.sqrt()
    return a.sqrt() * noisy - (1 - a).sqrt() * output


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, None])
def test_weights_are_min_snr_of_the_x0_error(batch, kind, gamma) -> None:
    """Hang et al. 2023, section 3.4: the loss is min(SNR, γ) ‖x₀ − x̂₀‖²; unweighted, ε-prediction
    is SNR ‖x₀ − x̂₀‖² and v-prediction (SNR + 1) ‖x₀ − x̂₀‖²."""
    sample, noise, _, alpha_bar = batch
    output = torch.randn(sample.shape, generator=torch.Generator().manual_seed(1)).double()
    noisy = diffuse(sample, noise, alpha_bar)
    error = (x0_of(output, noisy, alpha_bar, kind) - sample).square().mean((1, 2, 3))
    snr = alpha_bar / (1 - alpha_bar)
    if gamma is None:
        weight = snr if kind == "epsilon" else snr + 1
    else:
        weight = torch.tensor([min(s, gamma) for s in snr.tolist()])
    got = denoising_loss(output, sample, noise, alpha_bar, kind, gamma)
    torch.testing.assert_close(got.double(), (weight * error).mean(), rtol=1e-4, atol=0)


def test_both_predictions_weigh_the_same_mistake_alike(batch) -> None:
    sample, noise, _, alpha_bar = batch
    noisy = diffuse(sample, noise, alpha_bar)
    guess = sample + 0.1
    a = alpha_bar.view(-1, 1, 1, 1)
    epsilon = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    velocity = (a.sqrt() * noisy - guess) / (1 - a).sqrt()
    losses = [
        denoising_loss(output, sample, noise, alpha_bar, kind)
        for output, kind in ((epsilon, "epsilon"), (velocity, "v_prediction"))
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)


def test_weights_stay_finite_and_vanish_with_the_signal() -> None:
    alpha_bar = SCHEDULER.alphas_cumprod
    for kind in ("epsilon", "v_prediction"):
        weight = min_snr_weight(alpha_bar, kind)
        assert torch.isfinite(weight).all()
        assert (weight > 0).all()
        assert weight.max() <= 1
    # No signal at all, as in schedules of zero terminal SNR: v-prediction has a weight, 0.
    assert min_snr_weight(torch.zeros(1), "v_prediction").tolist() == [0]


def test_a_perfect_prediction_costs_nothing(batch) -> None:
    sample, noise, _, alpha_bar = batch
    for kind in ("epsilon", "v_prediction"):
        target = denoising_target(sample, noise, alpha_bar, kind)
        assert denoising_loss(target, sample, noise, alpha_bar, kind) == 0
