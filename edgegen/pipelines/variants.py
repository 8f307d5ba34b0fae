"""UNets made of another one's weights: without its costliest attention, or with more inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from .parts import unet as read_unet


def without_highest_attention(folder: str | Path) -> UNet2DConditionModel:
    """The "Efficient UNet" of Clockwork Diffusion (arXiv 2312.08128) with a model's weights.

    No transformer blocks at the highest resolution, in the first down and the last up block; all
    other weights are the model's own.

    Args:
        folder: as `parts.unet` takes it.

    Raises ValueError where there are none to leave out.
    """
    return _without_highest_attention(read_unet(folder), folder)


def _without_highest_attention(unet: UNet2DConditionModel, name: Any) -> UNet2DConditionModel:
    config = dict(unet.config)
    downs, ups = list(config["down_block_types"]), list(config["up_block_types"])
    if downs[0] != "CrossAttnDownBlock2D" and ups[-1] != "CrossAttnUpBlock2D":
        raise ValueError(f"{name}: its UNet has no attention at the highest resolution already")
    downs[0], ups[-1] = "DownBlock2D", "UpBlock2D"
    changed = _of(config, down_block_types=downs, up_block_types=ups)
    last = len(ups) - 1
    left_out = ("down_blocks.0.attentions.", f"up_blocks.{last}.attentions.")
    kept = {key: v for key, v in unet.state_dict().items() if not key.startswith(left_out)}
    changed.load_state_dict(kept)
    return changed


def with_guidance_input(unet: UNet2DConditionModel, width: int = 256) -> UNet2DConditionModel:
    """The same network with the guidance scale as an input, of which it makes nothing yet.

    diffusers' pipelines then evaluate one branch, at the scale that they are given.

    Args:
        width: `time_cond_proj_dim`, of the features of the scale.

    Raises ValueError where it has that input already.
    """
    if unet.config["time_cond_proj_dim"] is not None:
        raise ValueError("the UNet takes the guidance scale already")
    changed = _of(dict(unet.config), time_cond_proj_dim=width)
    own = changed.time_embedding.cond_proj
    nn.init.zeros_(own.weight)
    changed.load_state_dict(unet.state_dict() | {"time_embedding.cond_proj.weight": own.weight})
    return changed


def editor_unet(
    folder: str | Path,
    sample_size: int | None = None,
    trained: bool = True,
    highest_attention: bool = True,
) -> UNet2DConditionModel:
    """A UNet for InstructPix2Pix made of a text-to-image one, as `parts.unet` finds it; float32.

    It takes the source's latents beside the noisy ones. The weights of its first convolution for
    them are zero, so at first it does what it did without (Brooks et al. 2023, section 3.2). One
    that takes them already stays as it is.

    Args:
        sample_size: side of the latents that it will be trained for; null: as before.
        trained: false for random weights in the same architecture.
        highest_attention: false for `without_highest_attention`.
    """
    base = read_unet(folder)
    if not highest_attention:
        base = _without_highest_attention(base, folder)
    inputs, outputs = base.config.in_channels, base.config.out_channels
    if inputs not in (outputs, 2 * outputs):
        raise ValueError(
            f"{folder}: its UNet takes {inputs} channels and gives {outputs}: an editor is made of "
            "one that takes as many, or twice as many"
        )
    size = sample_size or base.config.sample_size
    editor = _of(dict(base.config), in_channels=2 * outputs, sample_size=size)
    if trained:
        weights = base.state_dict()
        first = weights["conv_in.weight"]
        more = first.new_zeros(len(first), 2 * outputs - inputs, *first.shape[2:])
        weights["conv_in.weight"] = torch.cat([first, more], 1)
        editor.load_state_dict(weights)
    return editor


def _of(config: dict[str, Any], **changes: Any) -> UNet2DConditionModel:
    """A UNet of a changed configuration, in float32."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):  # no draw of the caller may be lost
        return UNet2DConditionModel.from_config(public | changes)
