from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from edgegen.sampling.guidance import (
    call_guidance,
    edit_guidance_embedding,
    guidance_embedding,
    guide,
    guide_edit,
)


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


def test_guidance_of_an_editor_as_diffusers_combines_it():
    text, image, neither = torch.randn(3, 2, 4, 3, 3)
    # As in StableDiffusionInstructPix2PixPipeline.
    expected = neither + 7.0 * (text - image) + 1.6 * (image - neither)
    assert torch.allclose(guide_edit(neither, image, text, 7.0, 1.6), expected, atol=1e-5)
    scales = torch.tensor([7.0, 2.0]), torch.tensor([1.6, 1.0])
    each = guide_edit(neither, image, text, *scales)
    assert torch.allclose(each[0], expected[0], atol=1e-5)
    assert torch.allclose(each[1], (neither + 2 * (text - image) + image - neither)[1], atol=1e-5)


def test_both_scales_of_an_editor_are_told_and_never_nothing():
    scales = torch.tensor([7.5, 7.5, 1.0]), torch.tensor([1.5, 2.0, 1.0])
    found = edit_guidance_embedding(*scales, 9)
    assert found.shape == (3, 9)
    assert torch.equal(found[:, :5], guidance_embedding(scales[0], 5))
    assert torch.equal(found[:, 5:], guidance_embedding(scales[1], 4))
    assert (found.norm(dim=1) > 1).all()


class Pipe:
    """Calls its network as InstructPix2Pix does: three branches, or one where guidance is off."""

    def __init__(self, width):
        self.seen = []
        self.unet = nn.Identity()
        self.unet.config = SimpleNamespace(time_cond_proj_dim=width)
        self.unet.device, self.unet.dtype = torch.device("cpu"), torch.float32
        self.unet.forward = lambda x, timestep_cond=None: self.seen.append((len(x), timestep_cond))

    def __call__(self, guidance_scale=7.5, image_guidance_scale=1.5):
        self.unet(torch.zeros(6 if guidance_scale > 1 else 2, 1))


def test_an_editor_is_guided_by_its_input_where_it_has_one():
    plain, taking = Pipe(None), Pipe(16)
    with call_guidance(plain, 4.0, 2.0) as scales:
        assert scales == {"guidance_scale": 4.0, "image_guidance_scale": 2.0}
        plain(**scales)
    with call_guidance(taking, 4.0) as scales:
        taking(**scales)
    assert plain.seen == [(6, None)]
    ((count, given),) = taking.seen
    wanted = edit_guidance_embedding(torch.tensor([4.0]), torch.tensor([1.5]), 16)
    assert count == 2
    assert torch.allclose(given, wanted.expand(2, -1), atol=1e-3)
    with pytest.raises(KeyError), call_guidance(taking, 4.0):
        raise KeyError
    taking(guidance_scale=1.0)
    assert taking.seen[1] == (2, None)


def test_a_pipeline_without_guidance_by_the_picture():
    class Plain:
        def __call__(self, guidance_scale=7.5):
            raise NotImplementedError

    with call_guidance(Plain(), 4.0) as scales:
        assert scales == {"guidance_scale": 4.0}
    with pytest.raises(ValueError, match="image_guidance=2: Plain takes none"):
        call_guidance(Plain(), 4.0, 2.0)
