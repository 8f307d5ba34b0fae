"""How far predicted features are from true ones: what the adaptor of Clockwork is trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of (r_out − r̂_out)², scalar, in float32: Clockwork Diffusion, algorithm 1.

    Two tensors of one shape; the paper's ‖·‖₂² divided by the number of values, so that the
    learning rate does not depend on the size of the picture. Raises ValueError for two shapes.
    """
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"features must have one shape, got {shapes}")
    return torch.mean((prediction.float() - target.float()).square())
