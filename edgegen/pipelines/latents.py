"""Latents with mean 0 and deviation 1 in every channel, by weights alone."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


@torch.no_grad()
def latent_moments(
    vae: AutoencoderKL, pictures: Tensor, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, (C,) float64, over (N, 3, H, W)."""
    means = [vae.encode(batch).latent_dist.mean for batch in pictures.split(batch_size)]
    latents = torch.cat(means).double()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def fold_latent_moments(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Rewrite `quant_conv` and `post_quant_conv` so that latents become (z − mean) / std.

    What the autoencoder reconstructs does not change, up to rounding. `scaling_factor` becomes 1,
    which it must be for the pipelines to do the same.

    Args:
        vae: has both 1×1 convolutions (`use_quant_conv`, `use_post_quant_conv`).
        mean, std: (C,) of the present latents.
    """
    into, out = vae.quant_conv, vae.post_quant_conv
    if into is None or out is None:
        raise ValueError(
            "the autoencoder lacks quant_conv or post_quant_conv: nothing to fold into"
        )
    channels = len(mean)
    mean, std = mean.to(into.weight), std.to(into.weight)
    # The first half of the moments is the mean, the second the log-variance.
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    out.bias += torch.einsum("oikl,i->o", out.weight, mean)
    out.weight *= std.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
