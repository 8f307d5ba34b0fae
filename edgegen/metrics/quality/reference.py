"""Pictures and clips against the ones that they should equal: PSNR, SSIM, LPIPS, FLIP, VMAF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from .lpips import AlexLPIPS
from .pictures import check_pictures, optional
from .samples import SampleMetric

MAX_PSNR = 100.0  # dB, for equal pictures: no number is infinite in a table
_WINDOW = 11  # pixels, of SSIM
_LUMA = (0.2126, 0.7152, 0.0722)  # BT.709


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: two (B, 3, H, W) of floats in [0, 1] to (B,) dB, 100 at most."""
    check_pictures(pictures, reference)
    found = peak_signal_noise_ratio(
        pictures.double(), reference.double(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return found.clamp(max=MAX_PSNR)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): two (B, 3, H, W) in [0, 1] to (B,), 1 at most.

    Gaussian window, σ = 1.5, 11 × 11, each channel on its own; sides of 11 pixels or more. Windows
    that leave the picture do not count, as in scikit-image (torchmetrics' own mean counts them).
    """
    check_pictures(pictures, reference)
    if min(pictures.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of {_WINDOW} pixels a side or more")
    found = structural_similarity_index_measure(
        pictures.double(),
        reference.double(),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    return found[1][..., inner, inner].mean((1, 2, 3))


def flip(pictures: Tensor, reference: Tensor) -> Tensor:
    """ꟻLIP (Andersson et al. 2020): the difference seen when flipping between two pictures.

    At 67 pixels a degree, flip-evaluator's default. Two (B, 3, H, W) of sRGB floats in [0, 1] to
    (B,) in [0, 1]. Needs the extra `metrics`.
    """
    check_pictures(pictures, reference)
    evaluator = optional("flip_evaluator", "flip-evaluator", "metrics")
    rows = []
    for picture, wanted in zip(pictures, reference, strict=True):
        arrays = [
            side.clamp(0, 1).permute(1, 2, 0).contiguous().float().cpu().numpy()
            for side in (wanted, picture)
        ]
        _, mean, _ = evaluator.evaluate(*arrays, "LDR", applyMagma=False)
        rows.append(float(mean))
    return torch.tensor(rows, dtype=torch.float64, device=pictures.device)


def vmaf(clip: Tensor, reference: Tensor) -> Tensor:
    """VMAF v0.6.1 of a clip: two (T, 3, H, W) of RGB floats in [0, 1] to the mean of its frames.

    In [0, 100]: raw scores of equal clips exceed 100 and are clipped, as Netflix' own tool does.
    The luma that it reads is BT.709 in video range (16 to 235). Sides of 32 pixels or more; needs
    the extra `metrics`. Source: Li et al. 2016, and vmaf-torch.
    """
    check_pictures(clip, reference)
    if min(clip.shape[-2:]) < 32 or len(clip) < 2:
        raise ValueError("VMAF needs two frames or more, of 32 pixels a side or more")
    package = optional("vmaf_torch", "vmaf-torch", "metrics")
    network = package.VMAF(temporal_pooling=True, clip_score=True).to(clip.device)
    weights = torch.tensor(_LUMA, device=clip.device)[:, None, None]
    luma = [
        16 + 219 * (frames.float() * weights).sum(1, keepdim=True) for frames in (reference, clip)
    ]
    with torch.no_grad():
        return network(*luma).squeeze()


class Reference(SampleMetric):
    """Mean over pictures of a distance or similarity to the reference.

    Args:
        name: such as `quality/psnr`.
        score: two (B, 3, H, W) to (B,).
        options: `resamples`, and those of a torchmetrics `Metric`.
    """

    def __init__(
        self, name: str, score: Callable[[Tensor, Tensor], Tensor], **options: Any
    ) -> None:
        super().__init__((name,), **options)
        self.score = score

    def update(self, pictures: Tensor, reference: Tensor, indices: Tensor | None = None) -> None:
        """Add (B, 3, H, W) pictures and their references, floats in [0, 1]; see `SampleMetric`."""
        check_pictures(pictures, reference)
        self._keep(self.score(pictures, reference)[:, None], indices)


class PSNR(Reference):
    """`quality/psnr`: mean of the pictures' PSNR in dB (not the PSNR of their mean error)."""

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__("quality/psnr", psnr, **options)


class SSIM(Reference):
    """`quality/ssim`; see `ssim`."""

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__("quality/ssim", ssim, **options)


class FLIP(Reference):
    """`quality/flip`; see `flip`."""

    higher_is_better = False

    def __init__(self, **options: Any) -> None:
        super().__init__("quality/flip", flip, **options)


class LPIPS(Reference):
    """`quality/lpips`, on the AlexNet weights in the file `weights`; see `AlexLPIPS`."""

    higher_is_better = False

    def __init__(self, weights: str | Path, **options: Any) -> None:
        super().__init__("quality/lpips", AlexLPIPS(weights), **options)


class VMAF(SampleMetric):
    """`quality/vmaf`: mean over clips, each weighing the same; see `vmaf`."""

    higher_is_better = True

    def __init__(self, **options: Any) -> None:
        super().__init__(("quality/vmaf",), **options)

    def update(self, clip: Tensor, reference: Tensor, index: int | None = None) -> None:
        """Add one (T, 3, H, W) clip and its reference; `index`: its place among all clips."""
        indices = None if index is None else torch.tensor([index])
        self._keep(vmaf(clip, reference).reshape(1, 1), indices)
