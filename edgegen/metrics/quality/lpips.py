"""LPIPS on an AlexNet whose weights the user has."""

from __future__ import annotations

import pickle
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor, nn

from ...pipelines.checkpoints import one_line

# Channels in and out, kernel, stride, padding of torchvision's AlexNet; the number is the layer's
# place in its `features`.
_CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
_POOLED = (3, 6)  # before these comes a pooling
_SMALLEST = 31  # pixels; below, nothing is left for the last layers


class AlexLPIPS(nn.Module):
    """Learned perceptual distance, version 0.1 on AlexNet (Zhang et al. 2018, equation 1).

    The linear heads are those that torchmetrics carries; torchvision is not needed.

    Args:
        weights: file with the state dictionary of torchvision's AlexNet
            (`alexnet-owt-7be5be79.pth`).

    Raises FileNotFoundError or ValueError where the file is missing or holds something else.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {
                str(place): nn.Conv2d(wide, out, kernel, stride, padding)
                for place, (wide, out, kernel, stride, padding) in _CONVOLUTIONS.items()
            }
        )
        state = _read(Path(weights).expanduser())
        wanted = [f"features.{name}" for name in self.convolutions.state_dict()]
        if missing := [name for name in wanted if name not in state]:
            raise ValueError(f"{weights}: no AlexNet as torchvision saves it: lacks {missing[0]}")
        try:
            self.convolutions.load_state_dict({name[9:]: state[name] for name in wanted})
        except RuntimeError as error:
            raise ValueError(f"{weights}: not AlexNet: {one_line(error)}") from error
        with as_file(files("torchmetrics.functional.image") / "lpips_models" / "alex.pth") as path:
            heads = torch.load(path, map_location="cpu", weights_only=True)
        for level in range(len(_CONVOLUTIONS)):
            self.register_buffer(f"head{level}", heads[f"lin{level}.model.1.weight"])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (B, 3, H, W) of floats in [0, 1] to (B,) distances from 0 on; sides of 31 or more."""
        if min(first.shape[-2:]) < _SMALLEST:
            raise ValueError(f"LPIPS needs pictures of {_SMALLEST} pixels a side or more")
        total = torch.zeros(len(first), device=first.device)
        levels = zip(self._levels(first), self._levels(second), strict=True)
        for level, (a, b) in enumerate(levels):
            distance = (a - b).square() * getattr(self, f"head{level}")[0]
            total += distance.sum(1).mean((1, 2))
        return total

    def _levels(self, pictures: Tensor) -> list[Tensor]:
        hidden = (2 * pictures - 1 - self.shift) / self.scale
        levels = []
        for place in _CONVOLUTIONS:
            if place in _POOLED:
                hidden = nn.functional.max_pool2d(hidden, 3, 2)
            hidden = self.convolutions[str(place)](hidden).relu()
            levels.append(hidden / (hidden.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return levels


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; LPIPS needs torchvision's AlexNet weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: no readable weights: {one_line(error)}") from error
    return state if isinstance(state, dict) else {}
