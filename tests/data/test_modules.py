from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from edgegen.data import photos
from edgegen.data.modules import CaptionData, PictureData
from edgegen.data.stream import sample_rng
from edgegen.data.views import composite


@pytest.fixture(autouse=True)
def _no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "packaged_photos", lambda: [])


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue pictures for training, and one green one that is held out."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.new("RGB", (80, 80), (0, 0, 255)).save(folder / f"photo{number}.png")
    Image.new("RGB", (80, 80), (0, 255, 0)).save(folder / "coffee.png")
    assert [p.name for p in folder.iterdir() if photos.is_held_out(p)] == ["coffee.png"]
    return folder


def pictures(emoji_file: Path, **options: object) -> PictureData:
    data = PictureData(4, seed=1, emoji=str(emoji_file), validation_samples=3, **options)
    data.setup()
    return data


def test_share_of_crops(emoji_file: Path, photo_folder: Path) -> None:
    data = pictures(emoji_file, photo_folders=[str(photo_folder)], photo_fraction=0.3)
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    seen = [data.train_set[number] for number in range(400)]
    assert all(x.shape == (3, 64, 64) and x.abs().max() <= 1 for x in seen)
    crops = sum(bool((x == blue).all()) for x in seen)
    assert crops / 400 == pytest.approx(0.3, abs=0.07)
    assert any((x[:, 0, 0] == blue[:, 0, 0]).all() and not (x == blue).all() for x in seen)


def test_validation_pictures_were_never_trained_on(emoji_file: Path, photo_folder: Path) -> None:
    data = pictures(emoji_file, photo_folders=[str(photo_folder)])
    assert list(data.validation_sets) == ["emoji", "photos"]
    green = torch.tensor([-1.0, 1.0, -1.0])[:, None, None]
    assert all((x == green).all() for x in data.validation_sets["photos"])
    assert len(data.validation_sets["photos"]) == 3
    assert set(data.validation_sets["emoji"].items) <= set(data.emoji.indices("concepts"))
    wanted = composite(data.emoji.rgba(data.validation_sets["emoji"].items[0]), np.full(3, 255))
    got = (data.validation_sets["emoji"][0] + 1) * 127.5
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), wanted, atol=1e-4)
    assert set(data.train_set.items) == set(data.emoji.indices("train"))


def test_without_photographs(emoji_file: Path) -> None:
    data = pictures(emoji_file)
    assert list(data.validation_sets) == ["emoji"]
    assert data.train_set[0].shape == (3, 64, 64)
    (loader,) = data.val_dataloader()
    assert next(iter(loader)).shape[1:] == (3, 64, 64)


@pytest.fixture(scope="module")
def captions(emoji_file: Path, clip_folder: Path) -> CaptionData:
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    data = CaptionData(tokenizer, 4, seed=1, emoji=str(emoji_file))
    data.setup()
    return data


def test_captioned_pictures(captions: CaptionData) -> None:
    tokenizer = captions.tokenizer
    for number in range(20):
        picture, tokens, group = captions.train_set[number]
        assert picture.shape == (3, 64, 64)
        assert tokens.shape == (12,)
        index = next(i for i in captions.train_set.items if captions.group(i) == group)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        label = captions.emoji.label(captions.emoji.pictures[index]).split(",")[0]
        assert label.replace(" ", "") in text.replace(" ", "")


def test_groups_are_captions(captions: CaptionData) -> None:
    emoji = captions.emoji
    names = {emoji.caption(emoji.pictures[i]) for i in range(len(emoji))}
    assert len({captions.group(i) for i in range(len(emoji))}) == len(names)


def test_validation_holds_base_forms_in_order(captions: CaptionData) -> None:
    for split in ("cells", "concepts"):
        items = captions.validation_sets[split].items
        assert len(items)
        assert all(captions.emoji.pictures[i].tone == 0 for i in items)
        assert {captions.emoji.split_of(captions.emoji.pictures[i]) for i in items} == {split}
        assert [captions.validation_sets[split][0][2]] == [captions.group(items[0])]


def test_a_label_with_a_side_is_never_mirrored(captions: CaptionData) -> None:
    # Left of the drawing is red: over many views red must stay left of blue.
    index = captions.train_set.items[0]
    concept = captions.emoji.concepts[captions.emoji.pictures[index].concept]
    half = np.zeros((64, 64, 4), np.uint8)
    half[16:48, 16:32], half[16:48, 32:48] = (255, 0, 0, 255), (0, 0, 255, 255)
    before, captions.rgba[index] = captions.rgba[index], half
    label = concept.label
    try:
        sides = []
        for name in ("arrow left", "thing"):
            object.__setattr__(concept, "label", name)
            views = [captions.view(index, sample_rng(0, n))[0].numpy() for n in range(40)]
            x = np.arange(64)
            red = [
                (x * ((v[0] > 0.9) & (v[2] < -0.9)).sum(0)).sum()
                / ((v[0] > 0.9) & (v[2] < -0.9)).sum()
                for v in views
            ]
            blue = [
                (x * ((v[2] > 0.9) & (v[0] < -0.9)).sum(0)).sum()
                / ((v[2] > 0.9) & (v[0] < -0.9)).sum()
                for v in views
            ]
            sides.append(np.mean([r < b for r, b in zip(red, blue, strict=True)]))
    finally:
        captions.rgba[index] = before
        object.__setattr__(concept, "label", label)
    assert sides[0] == 1
    assert 0.3 < sides[1] < 0.7
