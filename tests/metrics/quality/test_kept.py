import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from edgegen.metrics.quality.kept import KeptFeatures, backbone_digest

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 8}
SMALL |= {"num_attention_heads": 2, "patch_size": 4}
ACTS = ("gelu", "quick_gelu")


class Means(nn.Module):
    """Channel means times a weight; counts its calls."""

    name = "means"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.power = 1
        self._calls = 0

    def forward(self, pictures: Tensor) -> Tensor:
        self._calls += 1
        return pictures.mean((2, 3)) ** self.power * self.weight.detach()


def pictures(count: int, size: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_features_are_those_of_the_backbone_and_computed_once(tmp_path) -> None:
    backbone, given = Means(), pictures(70)
    kept = KeptFeatures(backbone, tmp_path, chunk=60)
    found = kept(given)
    expected = given.astype(float).mean((1, 2)) / 255
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert len(list(tmp_path.glob("means-*.safetensors"))) == 2
    calls = backbone._calls
    assert torch.equal(KeptFeatures(backbone, tmp_path, chunk=60)(given), found)
    assert backbone._calls == calls
    # One more picture: only the chunk that it is in.
    kept(np.concatenate([given, pictures(1, seed=1)]))
    assert backbone._calls == calls + 1
    assert torch.equal(KeptFeatures(backbone, None)(given), found)


def test_sizes_may_differ(tmp_path) -> None:
    mixed = [*pictures(3), *pictures(2, size=6), *pictures(1, seed=2)]
    found = KeptFeatures(Means(), tmp_path)(mixed)
    expected = np.stack([picture.mean((0, 1)) / 255 for picture in mixed])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("change", ["pixel", "weight", "setting", "class", "order", "shape"])
def test_nothing_stale_is_read(change: str, tmp_path) -> None:
    given = pictures(4)
    KeptFeatures(Means(), tmp_path)(given)
    (before,) = tmp_path.iterdir()
    backbone = Means()
    if change == "pixel":
        given[2, 1, 1, 0] ^= 1
    elif change == "weight":
        backbone = Means(1.0000001)
    elif change == "setting":
        backbone.power = 2
    elif change == "class":
        backbone = type("Other", (Means,), {})()
    elif change == "order":
        given = given[::-1]
    else:
        given = given.reshape(4, 2, 8, 3)
    found = KeptFeatures(backbone, tmp_path)(given)
    assert backbone._calls == 1
    assert torch.equal(found, KeptFeatures(backbone, None)(given))
    assert len([path for path in tmp_path.iterdir() if path != before]) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "fewer"])
def test_a_file_that_does_not_belong_is_made_again(damage: str, tmp_path) -> None:
    given = pictures(4)
    expected = KeptFeatures(Means(), tmp_path)(given)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    wrong = {"features": torch.zeros(3 if damage == "fewer" else 4, 3)}
    if damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":  # of other pictures, renamed
        save_file(wrong, path, metadata={"key": "another"})
    else:
        save_file(wrong, path, metadata={"key": "0" * 64})
    assert torch.equal(KeptFeatures(Means(), tmp_path)(given), expected)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


def test_the_digest_is_of_weights_and_preparation() -> None:
    assert backbone_digest(Means()) == backbone_digest(Means())
    assert backbone_digest(Means()) != backbone_digest(Means(2.0))
    networks = [CLIPVisionModel(CLIPVisionConfig(**SMALL, hidden_act=act)) for act in ACTS]
    networks[1].load_state_dict(networks[0].state_dict())
    assert backbone_digest(networks[0]) != backbone_digest(networks[1])
    resized = Means()
    resized.size = 64
    assert backbone_digest(resized) != backbone_digest(Means())


def test_no_pictures() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        KeptFeatures(Means(), None)([])
