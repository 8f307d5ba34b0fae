"""The denoising objective with ε- or v-prediction and SNR weighting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


def diffuse(sample: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x₀ + √(1−ᾱ) ε, with `alpha_bar` (B,)."""
    a = alpha_bar.view(-1, *[1] * (sample.ndim - 1))
    return a.sqrt() * sample + (1 - a).sqrt() * noise


def shift_time(time: Tensor, shift: float) -> Tensor:
    """Times in [0, 1], 1 all noise, with their odds t / (1 − t) multiplied by `shift`.

    s·t / (1 + (s − 1)·t): above 1, more of the noisy ones (Esser et al. 2024, equation 23).
    """
    return shift * time / (1 + (shift - 1) * time)


def denoising_target(sample: Tensor, noise: Tensor, alpha_bar: Tensor, kind: Prediction) -> Tensor:
    """ε, or v = √ᾱ ε − √(1−ᾱ) x₀ (Salimans & Ho 2022, Appendix D)."""
    if kind == "epsilon":
        return noise
    a = alpha_bar.view(-1, *[1] * (sample.ndim - 1))
    return a.sqrt() * noise - (1 - a).sqrt() * sample


def parts_of(
    prediction: Tensor, noisy: Tensor, alpha_bar: Tensor, kind: Prediction
) -> tuple[Tensor, Tensor]:
    """x₀ and ε that a prediction for noisy (B, …) at ᾱ (B,) means: those that `diffuse` to it."""
    a = alpha_bar.view(-1, *[1] * (noisy.ndim - 1))
    if kind == "epsilon":
        return (noisy - (1 - a).sqrt() * prediction) / a.sqrt(), prediction
    return (
        a.sqrt() * noisy - (1 - a).sqrt() * prediction,
        a.sqrt() * prediction + (1 - a).sqrt() * noisy,
    )


def leap_target(
    noisy: Tensor, landed: Tensor, alpha_bar: Tensor, landed_alpha_bar: Tensor
) -> tuple[Tensor, Tensor]:
    """x₀ and ε by which one DDIM step leads from `noisy` at ᾱ (B,) to `landed` at the later ᾱ'.

    Salimans & Ho 2022, Appendix G; ᾱ' > ᾱ, and may be 1.
    """
    shape = (-1, *[1] * (noisy.ndim - 1))
    a, b = alpha_bar.view(shape), landed_alpha_bar.view(shape)
    ratio = ((1 - b) / (1 - a)).sqrt()
    sample = (landed - ratio * noisy) / (b.sqrt() - ratio * a.sqrt())
    return sample, (noisy - a.sqrt() * sample) / (1 - a).sqrt()


def min_snr_weight(alpha_bar: Tensor, kind: Prediction, gamma: float = 5.0) -> Tensor:
    """Min-SNR-γ weight (Hang et al. 2023): min(SNR, γ) of the x₀ error, in the target's units."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp_max(gamma) / (snr if kind == "epsilon" else snr + 1)


def denoising_loss(
    prediction: Tensor,
    sample: Tensor,
    noise: Tensor,
    alpha_bar: Tensor,
    kind: Prediction,
    gamma: float | None = 5.0,
) -> Tensor:
    """`weighted_error` to the denoising target, scalar."""
    target = denoising_target(sample, noise, alpha_bar, kind)
    return weighted_error(prediction, target, alpha_bar, kind, gamma)


def weighted_error(
    prediction: Tensor,
    target: Tensor,
    alpha_bar: Tensor,
    kind: Prediction,
    gamma: float | None = None,
) -> Tensor:
    """Mean squared error of a batch with Min-SNR weights, scalar, in float32.

    Args:
        prediction, target: ε or v, (B, C, H, W).
        alpha_bar: ᾱ of each sample, (B,).
        kind: which of the two they are.
        gamma: of the weights; None weighs all steps alike.

    Raises ValueError for two shapes.
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predictions must have one shape, got {shapes}")
    error = (prediction.float() - target.float()).square().flatten(1).mean(1)
    if gamma is not None:
        error = error * min_snr_weight(alpha_bar, kind, gamma)
    return torch.mean(error)
