"""Where the up blocks of a UNet join skip connections to their input."""

from __future__ import annotations

from typing import Any


def skip_splits(unet: Any) -> dict[str, int]:
    """Path of each convolution that takes joined features → channels that are not the skip's.

    `conv1` and `conv_shortcut` of every resnet of the up blocks; {} for a network without any.
    """
    found: dict[str, int] = {}
    ups = getattr(unet, "up_blocks", None)
    if ups is None or not hasattr(unet, "down_blocks"):
        return found
    mid = getattr(unet, "mid_block", None)
    last = unet.down_blocks[-1] if mid is None else mid
    channels = last.resnets[-1].out_channels
    for number, block in enumerate(ups):
        for index, resnet in enumerate(block.resnets):
            path = f"up_blocks.{number}.resnets.{index}"
            if resnet.in_channels > channels:
                found[f"{path}.conv1"] = channels
                if resnet.conv_shortcut is not None:
                    found[f"{path}.conv_shortcut"] = channels
            channels = resnet.out_channels
    return found
