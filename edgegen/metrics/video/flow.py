"""Optical flow without a network."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quality.pictures import as_bytes, optional


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's medium preset.

    Args:
        first, second: (3, H, W) RGB floats in [0, 1]; sides of 16 pixels or more.

    Returns:
        (2, H, W) float32: where each pixel of `first` lies in `second`, as offsets in x and y.

    Needs the extra `metrics`.
    """
    if min(first.shape[-2:]) < 16:
        raise ValueError(f"DIS flow needs frames of 16 pixels a side or more: {first.shape[-2:]}")
    cv2 = optional("cv2", "opencv-python-headless", "metrics")
    grey = [
        cv2.cvtColor(
            as_bytes(frame).permute(1, 2, 0).contiguous().cpu().numpy(), cv2.COLOR_RGB2GRAY
        )
        for frame in (first, second)
    ]
    found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    return torch.from_numpy(found).permute(2, 0, 1).to(first.device)
