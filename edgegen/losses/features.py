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


def sample_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of the root mean square of what two tensors (B, …) differ by, scalar.

    In float32. Unlike a mean of squares it is not ruled by the few samples that are far off.
    """
    squares = (prediction.float() - target.float()).square().flatten(1).mean(1)
    return (squares + 1e-12).sqrt().mean()  # a root's slope has no end at nought
