from __future__ import annotations

import numpy as np
import pytest
import torch

from edgegen.metrics.quality.edit_score import BASELINES, EditScore, closed, pointed_at


def score(edit: float, n: int = 40, subjects: int = 10, seed: int = 0) -> EditScore:
    """Edits that close the share `edit` of a gap of 10 dB, and of a distance of 2, plus noise."""
    rng = np.random.default_rng(seed)
    source, noise = rng.normal(12, 1, n), rng.normal(0, 0.3, n)
    families = np.array(["rule", "painting"])[np.arange(n) % 2]
    return EditScore(
        psnr={
            "source": source, "edit": source + 10 * edit + noise, "autoencoder": source + 10,
            **{name: source + 1 for name in BASELINES},
        },
        features={
            "source": np.full(n, 3.0), "edit": 3.0 - 2 * edit + noise / 5,
            "autoencoder": np.ones(n), **{name: np.full(n, 2.5) for name in BASELINES},
        },
        apart=np.full(n, 4.0),
        left=4 * (1 - edit) + noise / 5,
        followed=rng.random(n) < 0.8,
        followed_truth=np.ones(n, bool),
        chance=np.full(n, 0.05),
        subjects=np.array([f"s{i % subjects}" for i in range(n)]),
        families=families,
    )  # fmt: skip


@pytest.mark.parametrize("edit", [0.0, 0.5, 1.0])
def test_share_of_the_gap_that_is_closed(edit: float) -> None:
    found = score(edit).metrics("natural", "efflite0", resamples=300)
    for measure in ("psnr", "efflite0"):
        key = f"quality/closed_{measure}_natural"
        assert found[key] == pytest.approx(edit, abs=0.03)
        assert found[f"{key}_lo"] <= found[key] <= found[f"{key}_hi"]
        assert found[f"{key}_n"] == 40
        by_family = [found[f"{key}_{family}"] for family in ("rule", "painting")]
        assert np.mean(by_family) == pytest.approx(found[key], abs=1e-9)  # equal in size and gap
    covered = "quality/covered_efflite0_natural"
    assert found[covered] == pytest.approx(edit, abs=0.03)
    assert found[f"{covered}_lo"] <= found[covered] <= found[f"{covered}_hi"]
    assert found["quality/subjects_natural"] == 10
    assert found["quality/psnr_source_natural"] == pytest.approx(12, abs=0.5)
    # Distances are positive; better than a baseline is positive for both.
    assert found["quality/efflite0_edit_natural"] == pytest.approx(3 - 2 * edit, abs=0.05)
    assert found["quality/psnr_above_blur_natural"] == pytest.approx(10 * edit - 1, abs=0.2)
    assert found["quality/efflite0_below_blur_natural"] == pytest.approx(2 * edit - 0.5, abs=0.05)


def test_followed_has_an_interval_over_subjects() -> None:
    one = score(0.5, n=200, subjects=200)
    followed = one.metrics("g", "f")
    share = one.followed.mean()
    assert followed["quality/followed_g"] == pytest.approx(share)
    normal = 1.96 * np.sqrt(share * (1 - share) / 200)
    width = followed["quality/followed_g_hi"] - followed["quality/followed_g_lo"]
    assert width / 2 == pytest.approx(normal, rel=0.2)
    assert followed["quality/followed_g_chance"] == pytest.approx(0.05)
    assert followed["quality/followed_g_truth"] == 1
    assert followed["quality/followed_g_rule_n"] == 100
    # Copies of 5 subjects say less than 200 subjects.
    few = EditScore(**{**vars(one), "subjects": np.repeat(list("abcde"), 40)})
    same = EditScore(**{**vars(few), "followed": np.repeat([True, True, True, False, True], 40)})
    wide = same.metrics("g", "f")
    assert wide["quality/followed_g_hi"] - wide["quality/followed_g_lo"] > 3 * width


def test_no_gap_gives_no_share() -> None:
    assert closed(np.array([1.0]), np.array([-1.0])) != closed(np.array([1.0]), np.array([-1.0]))
    assert closed(np.array([1.0, 3.0]), np.array([4.0, 4.0])) == 0.5


def test_direction_is_nearest_by_cosine() -> None:
    torch.manual_seed(0)
    candidates = torch.randn(7, 12) * torch.arange(1, 8)[:, None]  # lengths do not count
    for _ in range(50):
        direction = torch.randn(12)
        cosines = [
            float(direction @ each / (direction.norm() * each.norm())) for each in candidates
        ]
        assert pointed_at(direction, candidates) == int(np.argmax(cosines))
    assert pointed_at(candidates[3] * 1e-3, candidates) == 3
