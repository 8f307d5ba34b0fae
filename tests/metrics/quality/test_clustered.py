import numpy as np
import pytest
import torch
from scipy import stats

from edgegen.metrics.quality.distribution import compare_features

NAMES = ["fd_pca64_x", "fd_x", "kid_x", "precision_x", "recall_x"]


@pytest.fixture(scope="module")
def sets():
    """40 prompts with 4 pictures each, nearly alike, and real ones."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(40, 70, generator=generator)
    generated = prompts.repeat_interleave(4, 0) + 0.01 * torch.randn(160, 70, generator=generator)
    return generated, torch.randn(90, 70, generator=generator), np.repeat(np.arange(40), 4)


def test_values_and_floors_are_those_without_clusters(sets) -> None:
    generated, reference, clusters = sets
    plain = compare_features(generated, reference, "x", resamples=20)
    found = compare_features(generated, reference, "x", clusters=clusters, resamples=20)
    assert found.keys() == plain.keys()
    for name in plain:
        if not name.endswith(("_lo", "_hi", "_sd")):
            assert found[name] == plain[name], name


def test_alike_pictures_widen_the_interval(sets) -> None:
    generated, reference, clusters = sets
    plain = compare_features(generated, reference, "x", resamples=100)
    found = compare_features(generated, reference, "x", clusters=clusters, resamples=100)
    for name in ("quality/fd_x", "quality/fd_pca64_x"):
        assert found[f"{name}_sd"] > 1.2 * plain[f"{name}_sd"]
        assert found[f"{name}_lo"] < found[name] < found[f"{name}_hi"]


def test_clusters_of_one_are_no_clusters(sets) -> None:
    generated, reference, _ = sets
    plain = compare_features(generated, reference, "x", resamples=300, all_features=False)
    found = compare_features(
        generated, reference, "x", clusters=np.arange(160), resamples=300, all_features=False
    )
    assert found == plain


def test_the_kernel_distance_of_drawn_clusters_is_that_of_the_drawn_sets() -> None:
    """Against the plain definition, with the clusters drawn by hand from the same numbers."""
    generator = torch.Generator().manual_seed(1)
    generated, reference = (torch.randn(n, 3, generator=generator).double() for n in (12, 8))
    clusters, resamples = np.repeat(np.arange(6), 2), 30
    with pytest.warns(UserWarning, match="left out"):
        found = compare_features(
            generated, reference, "x", clusters=clusters, resamples=resamples, all_features=False
        )
    drawing = torch.Generator().manual_seed(0)
    groups = torch.randint(6, (resamples, 6), generator=drawing)
    others = torch.randint(8, (resamples, 8), generator=drawing)

    def kernel(a, b):
        return ((a @ b.T) / 3 + 1) ** 3

    values = []
    for group, rows in zip(groups, others, strict=True):
        one = torch.cat([generated[2 * g : 2 * g + 2] for g in group])
        two = reference[rows]
        inner = [
            (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) ** 2 - len(x)) for x in (one, two)
        ]
        values.append((sum(inner) - 2 * kernel(one, two).mean()).item())
    assert found["quality/kid_x_sd"].item() == pytest.approx(stats.tstd(values), rel=1e-9)


def test_clusters_must_be_of_one_size(sets) -> None:
    generated, reference, _ = sets
    with pytest.raises(ValueError, match="of one size"):
        compare_features(
            generated, reference, "x", clusters=np.repeat([0, 1], [100, 60]), resamples=3
        )
