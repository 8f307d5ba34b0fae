"""Backbones against the reference packages, with random weights saved to files."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, Dinov2Config, Dinov2Model

from edgegen.metrics.quality.backbone import (
    Inception,
    features_of,
    load_backbone,
    name_of,
    short_name,
)
from edgegen.metrics.quality.clip import Clip
from edgegen.metrics.quality.distances import frechet_distance, kernel_distance, precision_recall
from edgegen.metrics.quality.efflite0 import EffLite0


def pictures(count: int, height: int = 20, width: int = 20, seed: int = 0) -> Tensor:
    """Smooth 8-bit pictures in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).round() / 255


def arrays(batch: Tensor) -> list[np.ndarray]:
    return [(p.permute(1, 2, 0) * 255).round().byte().numpy() for p in batch]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory, torch_fidelity: ModuleType) -> Path:
    """Random weights, scaled so that pictures stay apart through all layers."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    extractor = torch_fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        network = extractor("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


def test_inception_gives_torch_fidelitys_distances(
    inception_file: Path, torch_fidelity: ModuleType
) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = pictures(9, seed=1), pictures(8, seed=2)

    class Bytes(torch.utils.data.Dataset):
        def __init__(self, batch: Tensor) -> None:
            self.batch = (batch * 255).round().byte()

        def __len__(self) -> int:
            return len(self.batch)

        def __getitem__(self, place: int) -> Tensor:
            return self.batch[place]

    known = torch_fidelity.calculate_metrics(
        input1=Bytes(first),
        input2=Bytes(second),
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        kid_subsets=1,
        kid_subset_size=8,
        feature_extractor_weights_path=str(inception_file),
        cuda=False,
        batch_size=4,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    backbone = load_backbone(inception_file)
    assert name_of(backbone) == "inception"
    ours = [features_of(backbone, side, batch=3) for side in (first, second)]
    assert ours[0].std(0).mean() > 1e-3
    fid = known["frechet_inception_distance"]
    assert frechet_distance(*ours) == pytest.approx(fid, rel=1e-4)
    precise, recalled = precision_recall(*ours)
    assert precise.double().mean().item() == pytest.approx(known["precision"])
    assert recalled.double().mean().item() == pytest.approx(known["recall"])
    # Their one subset of 8 leaves one of the nine out, drawn from seed 2020.
    chosen = np.random.RandomState(2020).choice(9, 8, replace=False)
    kid = known["kernel_inception_distance_mean"]
    found = kernel_distance(ours[0][chosen], ours[1])
    assert found == pytest.approx(kid, abs=1e-6)  # theirs sums kernels of about 1 in float32
    doubles = [side.double() for side in (ours[0][chosen], ours[1])]
    exact = kid_features_to_metric(*doubles, kid_subsets=1, kid_subset_size=8, verbose=False)
    assert found == pytest.approx(exact["kernel_inception_distance_mean"], rel=1e-4)


def test_inception_refuses_other_files(
    tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no Inception"):
        Inception(path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match="no readable weights"):
        Inception(path)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'edgegen\[fid\]'"):
        Inception(inception_file)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dinov2-tiny"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    Dinov2Model(config).save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_resize": True,
        "resample": 3,
        "do_center_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_dinov2_sees_whole_pictures_resized_by_pillow(dino_folder: Path) -> None:
    backbone = load_backbone(dino_folder)
    batch = pictures(3, 30, 50)
    resized = [
        Image.fromarray(a).resize((224, 224), Image.Resampling.BICUBIC) for a in arrays(batch)
    ]
    pixels = torch.stack([torch.from_numpy(np.array(r)) for r in resized]).permute(0, 3, 1, 2) / 255
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    network = Dinov2Model.from_pretrained(dino_folder).eval()
    with torch.no_grad():
        known = network(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(features_of(backbone, batch), known, rtol=1e-4, atol=1e-4)
    assert name_of(backbone) == "dinov2_tiny"
    assert backbone.num_features == 24


def test_clip_features_are_the_models_own(clip_folder: Path) -> None:
    backbone = load_backbone(clip_folder)
    assert isinstance(backbone, Clip)
    batch = pictures(3, 24, 40)
    # The shorter side to 16 (bicubic), then the middle.
    prepared = []
    for array in arrays(batch):
        resized = Image.fromarray(array).resize((26, 16), Image.Resampling.BICUBIC)
        prepared.append(np.array(resized.crop((5, 0, 21, 16))))
    pixels = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor([0.48, 0.46, 0.41])[:, None, None]) / torch.tensor(
        [0.27, 0.26, 0.28]
    )[:, None, None]
    network = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = backbone.tokenizer(["abc", "a bd"], padding=True, return_tensors="pt")
    with torch.no_grad():
        known = network(**tokens, pixel_values=pixels)
    torch.testing.assert_close(backbone.pictures(batch), known.image_embeds)
    torch.testing.assert_close(backbone.captions(["abc", "a bd"]), known.text_embeds)
    norms = features_of(backbone, batch).norm(dim=1)
    assert not torch.allclose(norms, torch.ones(3), atol=1e-2)


def test_features_do_not_depend_on_the_company() -> None:
    backbone = EffLite0()
    batch = pictures(5)
    together = features_of(backbone, batch, batch=4)
    apart = torch.cat([features_of(backbone, p[None], batch=4) for p in batch])
    assert torch.equal(together, apart)


def test_modules_are_taken_as_they_are() -> None:
    class MyNet(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return batch.mean((2, 3))

    network = MyNet()
    assert load_backbone(network) is network
    assert name_of(network) == "mynet"
    assert name_of(load_backbone("efflite0")) == "efflite0"
    assert features_of(network, pictures(3)).shape == (3, 3)
    assert short_name("facebook/dinov2-base") == "dinov2_base"


def test_judges_stay_in_evaluation_mode(clip_folder: Path, dino_folder: Path) -> None:
    for folder in (clip_folder, dino_folder):
        backbone = load_backbone(folder).train()
        assert not any(module.training for module in backbone.modules())


def test_folders_that_are_no_backbone(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder; allowed are 'efflite0'"):
        load_backbone(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' is no backbone: allowed are clip, dinov2"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        (clip_folder / "preprocessor_config.json").read_text()
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    with pytest.raises(ValueError, match="not readable as CLIPModel"):
        load_backbone(tmp_path)


def test_pictures_must_be_floats() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) floats"):
        features_of(EffLite0(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
