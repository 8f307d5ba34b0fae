"""Distances against scipy, double loops and closed forms."""

import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from edgegen.metrics.quality.distances import (
    PrincipalAxes,
    bootstrap_distance,
    bootstrap_kernel,
    frechet_distance,
    kernel_distance,
    noise_floor,
    precision_recall,
    share,
    warn_if_few,
)


def gaussian(count: int, dimensions: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mixing + shift


def scipy_frechet(first: Tensor, second: Tensor) -> float:
    a, b = first.double().numpy(), second.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(s + t - 2 * np.real(linalg.sqrtm(s @ t))))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 10), (40, 400, 30), (64, 65, 64)])
def test_frechet_agrees_with_scipy(n: int, m: int, d: int) -> None:
    first, second = gaussian(n, d, 1, 0.5), gaussian(m, d, 2)
    assert frechet_distance(first, second) == pytest.approx(scipy_frechet(first, second), rel=1e-8)


def test_frechet_of_diagonal_gaussians() -> None:
    # Rows ±√((n−1)/2)·σ on each axis have exactly the covariance diag(σ²).
    def exact(sigma: list[float], mean: float) -> Tensor:
        size = (2 * len(sigma) - 1) ** 0.5 / 2**0.5
        axes = torch.diag(torch.tensor(sigma, dtype=torch.float64)) * size
        return torch.cat([axes, -axes]) + mean

    found = frechet_distance(exact([1.0, 2.0, 3.0], 0.0), exact([2.0, 2.0, 1.0], 0.5))
    assert found == pytest.approx(3 * 0.25 + 1 + 0 + 4)


def test_frechet_with_fewer_samples_than_features() -> None:
    first, second = gaussian(12, 40, 3), gaussian(15, 40, 4, 0.3)
    roots = np.linalg.eigvals(np.cov(first.double().T) @ np.cov(second.double().T))
    known = sum(np.trace(np.cov(x.double().T)) for x in (first, second))
    known += float((first.double().mean(0) - second.double().mean(0)).square().sum())
    known -= 2 * np.sqrt(roots.astype(complex)).real.sum()
    assert frechet_distance(first, second) == pytest.approx(known, rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9 * known)


def naive_kid(first: Tensor, second: Tensor) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    a, b = first.double().numpy(), second.double().numpy()
    n, m = len(a), len(b)
    within = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def test_kernel_distance_agrees_with_a_double_loop() -> None:
    first, second = gaussian(13, 5, 1), gaussian(17, 5, 2, 0.2)
    assert kernel_distance(first, second) == pytest.approx(naive_kid(first, second), rel=1e-10)


def test_kernel_distance_over_several_blocks_of_rows() -> None:
    first, second = gaussian(700, 4, 1), gaussian(600, 4, 2)
    n, m = 700, 600
    grams = [
        (x.double() @ y.double().T / 4 + 1) ** 3
        for x, y in ((first, first), (second, second), (first, second))
    ]
    known = sum((g.sum() - g.trace()) / (k * (k - 1)) for g, k in zip(grams, (n, m), strict=False))
    known -= 2 * grams[2].mean()
    assert kernel_distance(first, second) == pytest.approx(float(known), rel=1e-10)


def test_bootstrap_kernel_is_the_distance_of_drawn_sets() -> None:
    first, second = gaussian(14, 3, 1), gaussian(11, 3, 2)
    quick = bootstrap_kernel(first, second, resamples=60, seed=4)
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randint(len(x), (60, len(x)), generator=generator) for x in (first, second)]
    slow = [naive_kid(first[i], second[j]) for i, j in zip(*drawn, strict=True)]
    assert quick.sd == pytest.approx(np.std(slow, ddof=1))
    assert quick.value == pytest.approx(naive_kid(first, second))
    assert (quick.low + quick.high) / 2 == pytest.approx(quick.value)


def test_the_interval_covers_the_expected_distance() -> None:
    hits, generator = [], torch.Generator().manual_seed(0)
    pairs = torch.randn(80, 2, 100, 3, generator=generator)
    pairs[:, 1] += 0.5
    expected = np.mean([frechet_distance(a, b) for a, b in pairs])
    for a, b in pairs:
        found = bootstrap_distance(frechet_distance, a, b, resamples=60)
        hits.append(found.low < expected < found.high)
    assert 0.88 < np.mean(hits) <= 1


def test_axes_are_the_principal_ones() -> None:
    features = gaussian(90, 12, 1)
    axes = PrincipalAxes.fit(features, 5)
    centred = (features - features.mean(0)).double().numpy()
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(axes(features)), np.abs(centred @ rows[:5].T), atol=1e-6)
    with pytest.raises(ValueError, match="more than 5 samples"):
        PrincipalAxes.fit(features[:5], 5)


def test_precision_and_recall_by_hand() -> None:
    # With k = 1 each reference ball on the line reaches to the next neighbour: 1, 1, 8.
    reference = torch.tensor([[0.0], [1.0], [9.0]])
    generated = torch.tensor([[-1.0], [-1.5], [4.0], [18.0]])
    precise, recalled = precision_recall(generated, reference, k=1)
    assert precise.tolist() == [True, False, True, False]
    # Generated balls: 0.5 around −1 and −1.5, 5 around 4, 14 around 18.
    assert recalled.tolist() == [True, True, True]


def test_precision_and_recall_agree_with_torch_fidelity(torch_fidelity: ModuleType) -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generated, reference = gaussian(600, 4, 1), gaussian(550, 4, 2)
    precise, recalled = precision_recall(generated, reference)
    known = calculate_precision_recall_full(generated, reference, 3, 10_000)
    assert (share(precise).value, share(recalled).value) == pytest.approx(known)
    assert 0.05 < share(precise).value < 0.95


def test_noise_floor_falls_with_the_number_of_samples() -> None:
    reference = gaussian(800, 6, 1)
    sizes = 20, 100, 400, 1000
    floors, counts = zip(*(noise_floor(frechet_distance, reference, n) for n in sizes), strict=True)
    assert counts == (20, 100, 400, 400)
    assert floors[0] > floors[1] > floors[2] > 0
    assert floors[3] == floors[2]  # half of what there is
    far = gaussian(400, 6, 1, 3.0)
    assert frechet_distance(far, reference) > 10 * floors[2]


def test_few_samples_warn() -> None:
    with pytest.warns(UserWarning, match="30 samples for 40 dimensions"):
        warn_if_few(torch.zeros(30, 40), torch.zeros(90, 40), "fd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few(torch.zeros(50, 40), torch.zeros(90, 40), "fd")


def test_sets_must_fit() -> None:
    with pytest.raises(ValueError, match="one D"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="2 samples or more"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="4 samples or more"):
        precision_recall(torch.zeros(3, 3), torch.zeros(4, 3))
