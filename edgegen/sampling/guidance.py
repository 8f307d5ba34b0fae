"""Classifier-free guidance, and its scale as an input of the network (Meng et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def guide(without: Tensor, given: Tensor, scale: float | Tensor) -> Tensor:
    """ε(∅) + s·(ε(c) − ε(∅)) of two (B, C, H, W); the scale is a number or (B,)."""
    if isinstance(scale, Tensor):
        scale = scale.view(-1, *[1] * (given.ndim - 1))
    return without + scale * (given - without)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sinusoidal features of guidance scales, (B,) to (B, width).

    As diffusers' pipelines hand them to a UNet with `time_cond_proj_dim`, which takes scales that
    begin at 0: 1000·(s − 1) at geometric frequencies from 1 to 1/10000, sines first.

    Raises ValueError for a width below 4.
    """
    if width < 4:
        raise ValueError(f"width={width}: must be 4 or more")
    # `get_timestep_embedding` of diffusers rounds its frequencies otherwise, which at angles of
    # thousands is no longer what a pipeline hands over.
    half = width // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=scale.device) * -rate)
    angles = 1000 * (scale - 1).float()[:, None] * frequencies
    features = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(features, (0, width % 2))


def guidance_input(unet: Any, scale: float, count: int) -> dict[str, Tensor]:
    """The keyword argument by which a UNet takes the guidance scale, for a batch of `count`.

    Empty for one that does not take it, whose branches are to be combined by `guide` instead.
    """
    width = getattr(unet.config, "time_cond_proj_dim", None)
    if width is None:
        return {}
    # On the CPU, and in float64 until 1 is taken off, as in diffusers' pipelines.
    features = guidance_embedding(torch.full((count,), scale, dtype=torch.float64), width)
    return {"timestep_cond": features.to(unet.device, unet.dtype)}
