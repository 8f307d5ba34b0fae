"""Optical flow, without a network and with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...pipelines.checkpoints import one_line, read_weights
from ..quality.pictures import as_bytes, optional

_RAFT_LEAST = 128  # pixels: below, its lowest correlation level is empty


def require_dis() -> Any:
    """OpenCV, which `dis_flow` needs. Raises where it is not installed, naming the extra."""
    return optional("cv2", "opencv-python-headless", "metrics")


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
    cv2 = require_dis()
    grey = [
        cv2.cvtColor(
            as_bytes(frame).permute(1, 2, 0).contiguous().cpu().numpy(), cv2.COLOR_RGB2GRAY
        )
        for frame in (first, second)
    ]
    found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    return torch.from_numpy(found).permute(2, 0, 1).to(first.device)


class RaftFlow(nn.Module):
    """RAFT (Teed and Deng 2020), which published warp errors mostly use; as torchvision has it.

    Frames are continued at their borders to sides of whole multiples of eight, as the authors' code
    does, and 128 at least; the flow is cut back. Arguments and result are those of `dis_flow`.

    Args:
        weights: a file with a state dictionary of torchvision's RAFT, such as
            `raft_large_C_T_SKHT_V2-ff5fadd5.pth`; read as tensors only.
        size: which of its two networks that is.
        updates: refinements of the flow.

    Raises FileNotFoundError or ValueError where the file is missing or holds something else. Needs
    torchvision (the extra `fid`).
    """

    def __init__(
        self, weights: str | Path, size: Literal["large", "small"] = "large", updates: int = 12
    ) -> None:
        super().__init__()
        if size not in ("large", "small"):
            raise ValueError(f"size={size}: RAFT is large or small")
        path = Path(weights).expanduser()
        state, _ = read_weights(path, allow_pickle=True)
        models = optional("torchvision.models.optical_flow", "torchvision", "fid")
        self.net = getattr(models, f"raft_{size}")(weights=None, progress=False)
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: not RAFT ({size}): {one_line(error)[:120]}…") from error
        self.updates = updates
        self.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from `first` to `second`, (3, H, W) each in [0, 1]; (2, H, W) float32 pixels."""
        height, width = first.shape[-2:]
        high, wide = (max(_RAFT_LEAST, -(-side // 8) * 8) for side in (height, width))
        top, left = (high - height) // 2, (wide - width) // 2
        around = (left, wide - width - left, top, high - height - top)
        both = torch.stack([first, second]).float() * 2 - 1
        framed = nn.functional.pad(both, around, mode="replicate")
        with torch.no_grad():
            found: Tensor = self.net(framed[:1], framed[1:], num_flow_updates=self.updates)[-1][0]
        return found[:, top : top + height, left : left + width]
