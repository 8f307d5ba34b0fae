"""The layers of a UNet that see nothing but the timestep, and all that they can ever see.

TFMQ-DM (arXiv 2311.16503): there are as many inputs as training timesteps, so that their ranges
need no estimate.
"""

from __future__ import annotations

from typing import Any

import torch


def time_layers(unet: Any) -> list[str]:
    """Names of the layers that take the timestep's embedding, others mixed into it or not."""
    if getattr(unet, "time_embedding", None) is None:
        return []
    return [
        name
        for name, module in unet.named_modules()
        if name in ("time_embedding.linear_1", "time_embedding.linear_2")
        or name.endswith(".time_emb_proj")
    ]


def finite_layers(unet: Any) -> set[str]:
    """Those of them whose inputs depend on the timestep alone."""
    names = set(time_layers(unet))
    if not names or unet.config.time_cond_proj_dim is not None:
        return set()
    if any(getattr(unet, name, None) is not None for name in ("add_embedding", "class_embedding")):
        return {name for name in names if name.startswith("time_embedding.")}
    return names


@torch.no_grad()
def finite_inputs(
    unet: Any, names: set[str], timesteps: torch.Tensor
) -> list[tuple[str, torch.Tensor]]:
    """(name, inputs (n, width)) of layers, of `finite_layers`, at these timesteps (n,)."""
    embedding = unet.time_embedding
    first = unet.time_proj(timesteps.to(unet.device)).to(unet.dtype)
    hidden = embedding.linear_1(first)
    hidden = hidden if embedding.act is None else embedding.act(hidden)
    inputs = {"time_embedding.linear_1": first, "time_embedding.linear_2": hidden}
    out = embedding(first)
    out = out if unet.time_embed_act is None else unet.time_embed_act(out)
    found = []
    for name in sorted(names):
        x = inputs.get(name)
        if x is None:
            resnet = unet.get_submodule(name.removesuffix(".time_emb_proj"))
            x = out if resnet.skip_time_act else resnet.nonlinearity(out)
        found.append((name, x))
    return found
