import pytest
import torch

from edgegen.losses.diffusion import denoising_loss
from edgegen.losses.guidance import guidance_loss


def test_by_hand():
    prediction, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    target[1] *= 3
    alpha_bar = torch.tensor([0.5, 0.5])
    assert guidance_loss(prediction, target, alpha_bar, "epsilon") == 5.0
    # SNR is 1: below γ it weighs nothing for ε, and half for v.
    assert guidance_loss(prediction, target, alpha_bar, "epsilon", gamma=5.0) == 5.0
    assert guidance_loss(prediction, target, alpha_bar, "v_prediction", gamma=5.0) == 2.5


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_with_the_noise_as_target_it_is_the_denoising_loss(gamma):
    prediction, sample, noise = torch.randn(3, 4, 2, 5, 5)
    alpha_bar = torch.tensor([0.01, 0.3, 0.9, 0.99])
    expected = denoising_loss(prediction, sample, noise, alpha_bar, "epsilon", gamma)
    assert torch.allclose(guidance_loss(prediction, noise, alpha_bar, "epsilon", gamma), expected)


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        guidance_loss(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1), "epsilon")
