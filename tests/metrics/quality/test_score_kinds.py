import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance

from edgegen.metrics.quality.concept_score import ConceptScore
from edgegen.metrics.quality.evaluation import Material, judge, picture_batches
from edgegen.metrics.quality.reference import PSNR, VMAF
from edgegen.metrics.quality.scores import (
    ConceptAccuracy,
    DistributionScore,
    PairedScore,
    StreamedScore,
    WholeClipScore,
    score_of,
)


class Means(nn.Module):
    name = "means"
    num_features = 3

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float().mean((2, 3))


def pictures(count: int, seed: int, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_batches_are_of_one_size_and_in_order() -> None:
    mixed = [*pictures(40, 0), *pictures(2, 1, size=8), *pictures(3, 2)]
    pairs = [picture[::-1] for picture in mixed]
    places, seen = [], []
    for found, (first, second) in picture_batches(mixed, pairs):
        assert len(found) == len(first) <= 32
        assert torch.equal(first, second.flip(2))
        places += found
        seen += [(255 * picture).round().byte().permute(1, 2, 0).numpy() for picture in first]
    assert places == list(range(45))
    assert all((one == other).all() for one, other in zip(mixed, seen, strict=True))


def test_paired_errors_with_prompts_as_clusters() -> None:
    first, second = pictures(6, 0), pictures(6, 1)
    clusters = np.repeat([0, 1, 2], 2)
    material = Material(first, pairs=second, pair_name="ode", clusters=clusters)
    found = judge({"paired": PairedScore(Means())}, material)
    differences = (first / 255.0 - second / 255.0) ** 2
    rows = np.sqrt(differences.mean((1, 2, 3)))
    np.testing.assert_allclose(found.rows["quality/ode_rmse"], rows, rtol=1e-6)
    means = first.mean((1, 2)) / 255, second.mean((1, 2)) / 255
    errors = np.sqrt(((means[0] - means[1]) ** 2).mean(1))
    assert found.metrics["quality/ode_means"] == pytest.approx(errors.mean(), rel=1e-5)
    whole = rows.reshape(3, 2).mean(1)
    assert whole.min() <= found.metrics["quality/ode_rmse_lo"] + 1e-7
    assert found.metrics["quality/ode_rmse_hi"] <= whole.max() + 1e-7
    assert found.notes == {}


def test_a_metric_of_another_package_is_fed() -> None:
    first, second = pictures(70, 0), pictures(70, 1)
    own = StreamedScore(PeakSignalNoiseRatio(data_range=1.0), "theirs")
    ours = score_of(PSNR(), "psnr")
    found = judge({"theirs": own, "psnr": ours}, Material(first, pairs=second))
    error = ((first / 255.0 - second / 255.0) ** 2).mean()
    assert found.metrics["quality/theirs"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
    errors = ((first / 255.0 - second / 255.0) ** 2).mean((1, 2, 3))
    assert found.metrics["quality/psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), abs=1e-4)
    assert found.metrics["quality/psnr_n"] == 70


def test_a_metric_of_sets_sees_the_reference_too() -> None:
    metric = FrechetInceptionDistance(feature=Means(), normalize=True)
    score = StreamedScore(metric, "sets")
    assert score.needs == ("reference",)
    fake, real = pictures(40, 0), pictures(33, 1)
    found = judge({"sets": score}, Material(fake, reference=real))
    one, two = (side.mean((1, 2)) / 255 for side in (fake, real))
    first, second = np.cov(one.T), np.cov(two.T)
    root = np.trace(sqrtm(first @ second).real)
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * root
    assert found.metrics["quality/sets"] == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_is_noted_with_the_reason() -> None:
    scores = {
        "paired": PairedScore(Means()),
        "distribution": DistributionScore(Means(), resamples=3),
        "concept": ConceptAccuracy(),
    }
    missing = {"pairs": "no truth", "judge": "no domain"}
    material = Material(pictures(5, 0), reference=pictures(9, 1), missing=missing)
    found = judge(scores, material)
    assert found.notes["quality/paired_rmse"] == found.notes["quality/paired_means"] == "no truth"
    assert found.notes["quality/copy_rate"] == "no domain"
    assert "64 principal axes" in found.notes["quality/fd_pca64_means"]
    assert found.metrics["quality/fd_means"] > 0
    assert not set(found.notes) & set(found.metrics)


def test_one_clip_is_no_sample() -> None:
    frames = pictures(4, 0)
    material = Material(frames, pairs=pictures(4, 1), independent=False)
    found = judge({"psnr": score_of(PSNR(), "psnr")}, material)
    assert set(found.metrics) == {"quality/psnr", "quality/psnr_n"}
    assert isinstance(score_of(VMAF(), "vmaf"), WholeClipScore)
    small = judge({"vmaf": score_of(VMAF(), "vmaf")}, material)
    assert "32 pixels a side or more" in small.notes["quality/vmaf"]


def test_concepts_of_several_seeds() -> None:
    class Judge:
        def score(self, features: Tensor, seeds: int, nearest: int) -> ConceptScore:
            assert features.shape == (6, 1280)
            assert (seeds, nearest) == (2, 7)
            correct = np.array([[1, 0], [1, 1], [0, 0]], bool)
            return ConceptScore(correct, ~correct, np.ones(3, bool), np.array(["a", "a", "b"]))

    material = Material(pictures(6, 0), judge=Judge(), clusters=np.repeat([0, 1, 2], 2))
    found = judge({"concept": ConceptAccuracy(nearest=7, resamples=10)}, material)
    assert found.metrics["quality/concept_accuracy"] == 0.5
    assert found.rows["quality/copy_rate"].tolist() == [0, 1, 0, 0, 1, 1]


def test_what_is_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metrics\.mine: torch\.nn.*ReLU is no score"):
        score_of(nn.ReLU(), "mine")
