"""The features against what the network is known to see, and against Pillow's resizing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgegen.data.emoji import EmojiSet
from edgegen.data.views import composite
from edgegen.metrics.quality.efflite0 import (
    BATCH,
    EffLite0,
    cached_features,
    picture_features,
)


@pytest.fixture(scope="module")
def model() -> EffLite0:
    return EffLite0()


def noise(count: int, size: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_features_are_those_of_an_imagenet_classifier(model):
    """Four drawings plain enough for it get their class of ImageNet's 1000: weights, order and
    range of the input are right."""
    emoji = EmojiSet(groups=["animals-nature", "food-drink"], styles=["noto"], tones=False)
    classes = {"zebra": 340, "penguin": 145, "pretzel": 932, "strawberry": 949}
    pictures = {emoji.concepts[p.concept].label: i for i, p in enumerate(emoji.pictures)}
    white = np.array((255, 255, 255))
    features = picture_features(model, [composite(emoji.rgba(pictures[n]), white) for n in classes])
    found = model.network._fc(features).argmax(1).tolist()
    assert found == list(classes.values())


def test_a_photograph_is_recognised(model):
    data = pytest.importorskip("skimage.data")
    cat, coffee = data.chelsea()[:, 75:375], data.coffee()[:, 100:500]
    for photo, allowed in ((cat, {281, 282, 285}), (coffee, {967})):  # cats; espresso
        logits = model.network._fc(picture_features(model, [photo]))
        assert logits.argmax().item() in allowed


def test_features_are_what_the_networks_own_classifier_reads(model):
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    logits = model.network((pictures * 255 - 127) / 128)
    torch.testing.assert_close(model.network._fc(model(pictures)), logits, atol=1e-4, rtol=1e-4)
    assert model(pictures).shape == (2, EffLite0.num_features) == (2, 1280)


@pytest.mark.parametrize("size", [64, 300, 512])
def test_the_network_sees_what_pillow_resizes(model, size, monkeypatch):
    seen = []

    def spy(pictures):
        seen.append(pictures)
        return pictures

    monkeypatch.setattr(model.network, "extract_features", spy)
    picture = noise(1, size)[0]
    picture_features(model, [picture])
    resized = Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized).astype(float) - 127) / 128
    found = seen[0][0].permute(1, 2, 0).numpy()
    # Pillow rounds to whole numbers, after each of its two passes.
    np.testing.assert_allclose(found, expected, atol=1.6 / 128)


def test_it_cannot_be_trained_and_gives_no_gradients(model):
    assert not model.train().training
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    pictures = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert not model(pictures).requires_grad


def test_autocast_changes_nothing(model):
    pictures = torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model(pictures)
    assert torch.equal(lowered, model(pictures))


@pytest.mark.parametrize(
    "pictures", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_other_shapes_and_types_are_refused(model, pictures):
    with pytest.raises(ValueError, match=r"pictures must be \(B, 3, H, W\) floats"):
        model(pictures)


def test_a_row_does_not_depend_on_the_other_pictures(model):
    pictures = noise(BATCH + 3)
    together = picture_features(model, pictures)
    assert together.shape == (BATCH + 3, 1280)
    assert torch.equal(together[-2:], picture_features(model, pictures[-2:]))
    assert torch.equal(together[:5], picture_features(model, pictures[:5]))


def test_pictures_become_channels_first_floats_in_batches_of_one_size():
    seen = []

    class Spy(nn.Module):
        def forward(self, pictures):
            seen.append(pictures.shape)
            return pictures.flatten(1)

    pictures = noise(BATCH + 1, size=4)
    rows = picture_features(Spy(), iter(pictures))
    assert seen == [(BATCH, 3, 4, 4)] * 2
    expected = pictures.transpose(0, 3, 1, 2).reshape(BATCH + 1, -1) / 255
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-7)
    with pytest.raises(ValueError, match="no pictures"):
        picture_features(Spy(), [])


def test_features_are_kept_and_found_by_content(model, tmp_path, monkeypatch):
    pictures = noise(3)
    fresh = cached_features(pictures, tmp_path / "cache")
    assert torch.equal(fresh, picture_features(model, pictures))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(EffLite0, "__init__", None)  # never built again
    assert torch.equal(cached_features(pictures, tmp_path / "cache"), fresh)
    changed = pictures.copy()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(TypeError):
        cached_features(changed, tmp_path / "cache")


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cached_features(noise(1), None).shape == (1, 1280)
    assert list(tmp_path.iterdir()) == []


def test_it_is_quiet():
    code = "from edgegen.metrics.quality.efflite0 import EffLite0; EffLite0()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
