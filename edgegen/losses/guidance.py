"""Distillation of classifier-free guidance into one evaluation (Meng et al. 2023, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .diffusion import Prediction, min_snr_weight


def guidance_loss(
    prediction: Tensor,
    target: Tensor,
    alpha_bar: Tensor,
    kind: Prediction,
    gamma: float | None = None,
) -> Tensor:
    """Weighted mean squared error to the teacher's guided prediction, scalar, in float32.

    Args:
        prediction: the student's, from the prompt alone, (B, C, H, W).
        target: `sampling.guidance.guided` of the teacher's two predictions, of the same kind.
        alpha_bar: ᾱ of each sample, (B,).
        kind: ε or v.
        gamma: of Min-SNR weights; None weighs all steps alike.

    Raises ValueError for two shapes.
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predictions must have one shape, got {shapes}")
    error = (prediction.float() - target.float()).square().flatten(1).mean(1)
    if gamma is not None:
        error = error * min_snr_weight(alpha_bar, kind, gamma)
    return torch.mean(error)
