from __future__ import annotations

import pytest
import torch

from edgegen.losses.features import feature_loss, sample_distance


def test_mean_of_squares() -> None:
    prediction = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    target = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
    loss = feature_loss(prediction, target)
    assert loss.item() == (1 + 4 + 0 + 4) / 4
    loss.backward()
    assert torch.equal(prediction.grad, (prediction.detach() - target) / 2)


def test_half_precision_is_summed_in_full() -> None:
    # 300² does not fit float16, and 4096 + 1 is 4096 in it.
    prediction = torch.full((5000,), 300.0, dtype=torch.float16)
    assert feature_loss(prediction, torch.zeros(5000)).item() == pytest.approx(90000)
    assert feature_loss(prediction, prediction.bfloat16()).dtype == torch.float32


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 1\)"):
        feature_loss(torch.zeros(2, 3), torch.zeros(2, 1))


def test_distance_of_samples_is_a_mean_of_roots() -> None:
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 1.0), torch.full((3, 4, 4), -5.0)])
    assert float(sample_distance(prediction, target)) == pytest.approx((1 + 5) / 2)
    same = target.clone().requires_grad_()
    sample_distance(same, target).backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())
