"""Losses of an autoencoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gradient_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical differences, (B, C, H, W) → scalar."""
    error = prediction - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def reconstruction_loss(prediction: Tensor, target: Tensor, gradient: float = 0.5) -> Tensor:
    """Mean of |e| and 4e², plus `gradient` × the error of differences; pixels in [-1, 1].

    The square keeps the mean right where PSNR is read, the absolute terms keep edges sharp.
    """
    error = prediction - target
    pixels = 0.5 * error.abs().mean() + 2 * error.square().mean()
    return pixels + gradient * gradient_l1(prediction, target)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)) in nats, averaged over all latent values."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(prediction: Tensor, target: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B, C, H, W) → (B,)."""
    mse = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / mse.clamp_min(1e-12))
