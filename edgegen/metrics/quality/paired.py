"""Paired error to the truth: how far a cheaper method's pictures are from the base model's own.

The truth of a prompt and its noise is the base model's solution with many deterministic steps
(`truths`). A method starts from the same noise, so the error is its own, picture by picture: some
hundred prompts rank methods that a distance between distributions cannot tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import BATCH, features_of, load_backbone, name_of
from .pictures import check_pictures
from .samples import SampleMetric


def pixel_errors(pictures: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared difference: two (N, 3, H, W) of floats in [0, 1] to (N,) float64."""
    check_pictures(pictures, truth)
    return (pictures.double() - truth.double()).square().mean((1, 2, 3)).sqrt()


def feature_errors(features: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared difference over features: two (N, D) to (N,) float64."""
    if features.shape != truth.shape or features.ndim != 2:
        shapes = f"{tuple(features.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"features must be two (N, D) of one shape, got {shapes}")
    return (features.double() - truth.double()).square().mean(1).sqrt()


def paired_errors(
    pictures: Tensor, truth: Tensor, backbone: nn.Module, batch: int = BATCH
) -> Tensor:
    """Errors in pixels and in features, picture by picture.

    Args:
        pictures, truth: (N, 3, H, W) floats in [0, 1]; row i of both is one prompt and one noise.
        backbone: as `load_backbone` gives it.

    Returns:
        (N, 2) float64: `pixel_errors`, `feature_errors`. Two methods are compared by
        `bootstrap.paired_difference` of a column each.
    """
    check_pictures(pictures, truth)
    both = [features_of(backbone, side, batch) for side in (pictures, truth)]
    pixels = pixel_errors(pictures, truth)
    return torch.stack([pixels, feature_errors(*both).to(pixels.device)], 1)


class PairedError(SampleMetric):
    """`quality/ode_rmse` (pixels) and `quality/ode_NAME` (features): means of `paired_errors`.

    `samples()` gives the errors picture by picture, for `paired_difference`.

    Args:
        backbone: as `load_backbone` takes it; it gives the name, such as `quality/ode_efflite0`.
        batch: how many pictures the backbone sees at once.
    """

    higher_is_better = False

    def __init__(
        self,
        backbone: nn.Module | str | Path = "efflite0",
        *,
        batch: int = BATCH,
        **options: Any,
    ) -> None:
        network = load_backbone(backbone)
        super().__init__(("quality/ode_rmse", f"quality/ode_{name_of(network)}"), **options)
        self.backbone, self.batch = network, batch

    def update(self, pictures: Tensor, truth: Tensor, indices: Tensor | None = None) -> None:
        """Add (B, 3, H, W) pictures and their truths, floats in [0, 1]; see `SampleMetric`."""
        self._keep(paired_errors(pictures, truth, self.backbone, self.batch), indices)
