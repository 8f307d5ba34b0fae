"""How weights lie in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def channels_last(net: nn.Module) -> Any:
    """Let a network's convolutions run channels last, in place; the network itself is returned.

    The layout that tensor cores want; on CPUs it hardly matters for time. Sums may run in another
    order, so last bits can differ. Written files are the same: `save_pretrained` makes weights
    contiguous.
    """
    # nn.Module's own: diffusers' `to` warns of things that a layout has no part in.
    return nn.Module.to(net, memory_format=torch.channels_last)  # type: ignore[call-overload]
