import pytest
import torch

from edgegen.losses.diffusion import weighted_error


def test_by_hand():
    prediction, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    target[1] *= 3
    alpha_bar = torch.tensor([0.5, 0.5])
    assert weighted_error(prediction, target, alpha_bar, "epsilon") == 5.0
    # SNR is 1: below γ it weighs nothing for ε, and half for v.
    assert weighted_error(prediction, target, alpha_bar, "epsilon", gamma=5.0) == 5.0
    assert weighted_error(prediction, target, alpha_bar, "v_prediction", gamma=5.0) == 2.5


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        weighted_error(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1), "epsilon")
