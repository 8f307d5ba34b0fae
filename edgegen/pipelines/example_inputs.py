"""Calls of a pipeline's networks with inputs of the right shapes and no meaning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Conditioning that a UNet may ask for beyond timestep and text, and that is not known here.
_OTHER_CONDITIONS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")


def run_unet(unet: nn.Module, batch: int, height: int, width: int, tokens: int = 77) -> Any:
    """One evaluation on `batch` latents of (height, width), for a clip on all its frames.

    Raises:
        ValueError: the UNet needs conditioning of a kind that is not known here.
    """
    config: Any = unet.config
    device, dtype = _place(unet)
    for key in _OTHER_CONDITIONS:
        if getattr(config, key, None) is not None:
            raise ValueError(f"UNet with {key}={getattr(config, key)}: not supported")
    timestep = torch.zeros((), device=device, dtype=torch.long)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)

    channels, context = config.in_channels, config.cross_attention_dim
    if hasattr(config, "num_frames"):
        clip = zeros(batch, config.num_frames, channels, height, width)
        return unet(clip, timestep, zeros(batch, 1, context), zeros(batch, 3))
    added: dict[str, torch.Tensor] | None = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": zeros(batch, pooled), "time_ids": zeros(batch, 6)}
    elif config.addition_embed_type is not None:
        raise ValueError(
            f"UNet with addition_embed_type={config.addition_embed_type}: only text_time is known"
        )
    sample = zeros(batch, channels, height, width)
    text = zeros(batch, tokens, context)
    return unet(sample, timestep, text, added_cond_kwargs=added)


def run_text_encoder(encoder: nn.Module, batch: int) -> Any:
    """Encode `batch` texts, each filled up to the longest that the encoder takes."""
    config: Any = encoder.config
    ids = torch.zeros(
        (batch, config.max_position_embeddings), device=_place(encoder)[0], dtype=torch.long
    )
    return encoder(ids)


def run_image_encoder(encoder: nn.Module, batch: int) -> Any:
    config: Any = encoder.config
    device, dtype = _place(encoder)
    size = config.image_size
    return encoder(
        torch.zeros((batch, config.num_channels, size, size), device=device, dtype=dtype)
    )


def run_vae_encoder(vae: Any, batch: int, height: int, width: int) -> Any:
    """Encode `batch` pictures of (height, width) pixels."""
    device, dtype = _place(vae)
    pixels = (batch, vae.config.in_channels, height, width)
    return vae.encode(torch.zeros(pixels, device=device, dtype=dtype))


def run_vae_decoder(vae: Any, batch: int, height: int, width: int, frames: int | None) -> Any:
    """Decode `batch` latents of (height, width), or as many clips of `frames` latents."""
    device, dtype = _place(vae)
    shape = (batch * (frames or 1), vae.config.latent_channels, height, width)
    latents = torch.zeros(shape, device=device, dtype=dtype)
    if type(vae).__name__ == "AutoencoderKLTemporalDecoder":
        return vae.decode(latents, num_frames=frames or 1)
    return vae.decode(latents)


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype
