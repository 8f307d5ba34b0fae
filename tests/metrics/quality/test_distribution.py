"""The distribution metric against its pure parts and torchmetrics' FID and KID."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from edgegen.metrics.quality.distances import (
    PrincipalAxes,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from edgegen.metrics.quality.distribution import Distribution, compare_features

ENDS = ("", "_lo", "_hi", "_sd", "_n")


class Patches(nn.Module):
    """Patches of 4 × 4 pixels under random weights: 96 features of an 8 px picture."""

    name = "patches"
    num_features = 96

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 24, 4, stride=4).requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.conv(pictures.float()).flatten(1)


def pictures(count: int, seed: int, power: float = 1.0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) ** power


def test_every_number_comes_from_its_pure_function() -> None:
    metric = Distribution(Patches(), resamples=20)
    generated, reference = pictures(150, 1, 1.5), pictures(320, 2)
    for part in generated.split(40):
        metric.update(part, real=False)
    for part in reference.split(64):
        metric.update(part, real=True)
    found = metric.compute()
    g, r = metric.backbone(generated), metric.backbone(reference)
    axes = PrincipalAxes.fit(r, 64)
    precise, recalled = precision_recall(g, r)
    known = {
        "fd_patches": frechet_distance(g, r),
        "fd_pca64_patches": frechet_distance(axes(g), axes(r)),
        "kid_patches": kernel_distance(g, r),
        "precision_patches": precise.double().mean().item(),
        "recall_patches": recalled.double().mean().item(),
    }
    for name, value in known.items():
        assert found[f"quality/{name}"].item() == pytest.approx(value, rel=1e-4, abs=1e-9)
        low, high = (found[f"quality/{name}{end}"].item() for end in ("_lo", "_hi"))
        assert low <= value <= high
        assert found[f"quality/{name}_n"] == (320 if "recall" in name else 150)
    floors = {f"quality/{name}_floor{end}" for name in list(known)[:3] for end in ("", "_n")}
    assert set(found) == {f"quality/{name}{end}" for name in known for end in ENDS} | floors
    assert found["quality/fd_patches_floor_n"] == 150
    assert 0 < found["quality/fd_patches_floor"] < found["quality/fd_patches"]


def test_frechet_agrees_with_torchmetrics() -> None:
    backbone = Patches()
    theirs = FrechetInceptionDistance(feature=backbone, normalize=True, input_img_size=(3, 8, 8))
    ours = Distribution(backbone, resamples=10)
    for real, seed in ((True, 1), (False, 2)):
        theirs.update(pictures(200, seed), real=real)
        ours.update(pictures(200, seed), real=real)
    found = ours.compute()["quality/fd_patches"].item()
    assert found == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_kept_features_serve_again() -> None:
    first, second = Distribution(Patches(), resamples=10), Distribution(Patches(), resamples=10)
    for real, seed in ((False, 1), (True, 2)):
        first.update(pictures(110, seed), real=real, indices=torch.arange(110).flip(0))
        second.update(first.features(real=real), real=real)
    assert first.compute() == second.compute()
    again = compare_features(
        first.features(real=False), first.features(real=True), "patches", resamples=10
    )
    assert again == first.compute()
    torch.testing.assert_close(first.features(real=False), first.backbone(pictures(110, 1).flip(0)))


@pytest.mark.filterwarnings("ignore:left out")
def test_only_inception_makes_it_a_fid() -> None:
    features = torch.randn(120, 70, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="60 samples"):
        found = compare_features(features[:60], features[60:], "inception", resamples=10)
    assert "quality/fid" not in compare_features(features, features, "other", resamples=10)
    assert found["quality/fid"].item() == pytest.approx(
        frechet_distance(features[:60], features[60:])
    )
    # 60 reference samples do not span 64 axes.
    assert not any("pca" in name for name in found)


@pytest.mark.filterwarnings("ignore:left out")
def test_few_samples_warn_and_leave_out_what_they_must() -> None:
    with pytest.warns(UserWarning, match="for 96 dimensions") as record:
        found = compare_features(torch.randn(30, 96), torch.randn(40, 96), "x", resamples=5)
    text = " ".join(str(warning.message) for warning in record)
    assert "30 samples for 96 dimensions" in text
    assert "64 principal axes need more than 64 samples" in text
    assert "quality/kid_x" in found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_features(torch.randn(100, 70), torch.randn(100, 70), "x", resamples=5)


def test_default_backbone_needs_no_download() -> None:
    metric = Distribution(resamples=5, all_features=False)
    for real, seed in ((False, 1), (True, 2)):
        metric.update(pictures(6, seed), real=real)
    with pytest.warns(UserWarning, match="principal axes"):
        found = metric.compute()
    assert np.isfinite(found["quality/kid_efflite0"].item())
    assert "quality/fd_efflite0" not in found


def test_nothing_to_compare() -> None:
    metric = Distribution(Patches())
    metric.update(pictures(5, 1), real=False)
    with pytest.raises(ValueError, match="no reference pictures"):
        metric.features(real=True)
    with pytest.raises(FileNotFoundError, match="backbone 'nowhere'"):
        Distribution(Path("nowhere"))
