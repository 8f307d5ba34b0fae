import pytest
import torch
from diffusers import StableDiffusionPipeline

from edgegen.sampling.guidance import guidance_embedding, guide


@pytest.mark.parametrize("width", [8, 9, 256])
def test_embedding_as_diffusers_makes_it(width):
    scales = torch.tensor([1.0, 4.5, 7.5])
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, scales - 1, embedding_dim=width
    )
    assert torch.equal(guidance_embedding(scales, width), expected)
    with pytest.raises(ValueError, match="width=3"):
        guidance_embedding(scales, 3)


def test_guidance():
    without, given = torch.randn(2, 2, 4, 3, 3)
    assert torch.equal(guide(without, given, 0.0), without)
    assert torch.allclose(guide(without, given, 1.0), given, atol=1e-6)
    assert torch.allclose(guide(without, given, 7.0), 7 * given - 6 * without, atol=1e-5)
    each = guide(without, given, torch.tensor([2.0, 5.0]))
    assert torch.equal(each[1], guide(without, given, 5.0)[1])
    assert not torch.equal(each[0], guide(without, given, 5.0)[0])
