from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from edgegen.data.emoji import EmojiSet
from edgegen.data.latents import LatentData
from edgegen.data.stream import sample_rng
from edgegen.data.views import BACKGROUNDS


@pytest.fixture(scope="module")
def make(emoji_file: Path, vae_folder: Path, clip_folder: Path):
    def made(**options: object) -> LatentData:
        options = {"views": 6, "coloured": 0.5, "limit": 8, "emoji": str(emoji_file), **options}
        data = LatentData(
            AutoencoderKL.from_pretrained(vae_folder),
            CLIPTokenizer.from_pretrained(clip_folder, model_max_length=40),
            4,
            **options,
        )
        data.setup()
        return data

    return made


@pytest.fixture(scope="module")
def data(make) -> LatentData:
    return make()


def test_a_latent_is_the_encoded_view(data: LatentData) -> None:
    assert data.latents.shape == (len(data.items), 6, 4, 16, 16)
    for position, view in ((0, 0), (3, 5)):
        picture = data.picture(position, view, data.emoji.rgba(data.items[position]))
        with torch.no_grad():
            mean = data.vae.encode(picture[None]).latent_dist.mean[0]
        torch.testing.assert_close(data.latents[position, view].float(), mean, rtol=2e-3, atol=2e-3)


def test_view_0_is_the_picture_on_white(data: LatentData) -> None:
    rgba = data.emoji.rgba(data.items[2]).astype(float)
    alpha = rgba[..., 3:] / 255
    white = alpha * rgba[..., :3] + (1 - alpha) * 255
    got = (data.picture(2, 0, data.emoji.rgba(data.items[2])) + 1) * 127.5
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), white, atol=0.51)


def test_a_coloured_background_is_drawn_and_said(data: LatentData) -> None:
    colours = [[data.background(p, v) for v in range(data.views)] for p in range(len(data.items))]
    assert all(row[0] == "white" for row in colours)
    flat = [colour for row in colours for colour in row[1:]]
    assert np.mean([colour != "white" for colour in flat]) == pytest.approx(0.5, abs=0.12)
    said = 0
    for number in range(200):
        position = number % len(data.items)
        view = int(sample_rng(9, number).integers(data.views))
        latent, tokens = data.sample(position, sample_rng(9, number))
        assert torch.equal(latent, data.latents[position, view].float())
        colour = data.background(position, view)
        picture = data.picture(position, view, data.emoji.rgba(data.items[position]))
        corner = ((picture[:, 0, 0] + 1) * 127.5).round().int().tolist()
        assert corner == list(BACKGROUNDS[colour])
        text = data.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "")
        if text and colour != "white":
            assert text.endswith(f",ona{colour}background")
            said += 1
        else:
            assert "background" not in text
    assert said > 30


def test_share_of_empty_captions(make) -> None:
    data = make(unconditional=0.25)
    empty = data.tokenizer("", padding="max_length").input_ids
    share = np.mean([data.train_set[n][1].tolist() == empty for n in range(600)])
    assert share == pytest.approx(0.25, abs=0.05)
    always = make(unconditional=0)
    assert all(always.train_set[n][1].tolist() != empty for n in range(100))


def test_domain(data: LatentData, emoji_file: Path) -> None:
    train = EmojiSet(str(emoji_file), tones=False, limit=8)
    assert [data.emoji.pictures[i] for i in data.items] == [
        train.pictures[i] for i in train.indices("train")
    ]
    assert {data.emoji.pictures[i].tone for i in data.items} == {0}


def test_the_store_is_read_back_and_depends_on_what_made_it(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(cache=tmp_path)
    (store,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(LatentData, "_encode", lambda self: pytest.fail("encoded again"))
        again = make(cache=tmp_path, unconditional=0.5)
    assert torch.equal(first.latents, again.latents)
    changes = [{"seed": 1}, {"views": 5}, {"shift": 1.0}, {"coloured": 0.0}, {"limit": 7}]
    changes += [{"flip": 0.0}, {"scale": (0.9, 1.0)}]
    for change in changes:
        make(cache=tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 1 + len(changes)
    assert store.exists()
    other = make(cache=tmp_path)
    other.emoji.sha256 = "another file"
    assert other._key() != first._key()
    with torch.no_grad():
        next(first.vae.decoder.parameters()).add_(1)
        assert first._key() == again._key()
        next(first.vae.encoder.parameters()).add_(1)
    assert first._key() != again._key()


def test_views_are_mirrored_as_often_as_asked(make) -> None:
    # Without shift, scale and colour, a view is the picture itself or its mirror image.
    def mirrored(flip: float) -> list[bool]:
        data = make(flip=flip, shift=0.0, scale=(1.0, 1.0), coloured=0.0, views=20, limit=4)
        found = []
        for position, index in enumerate(data.items):
            rgba = data.emoji.rgba(index)
            plain = data.picture(position, 0, rgba)
            if torch.equal(plain, plain.flip(-1)):
                continue
            for view in range(1, data.views):
                picture = data.picture(position, view, rgba)
                found.append(torch.equal(picture, plain.flip(-1)))
                assert found[-1] or torch.equal(picture, plain)
        return found

    assert not any(mirrored(0.0))
    assert all(mirrored(1.0))
    assert np.mean(mirrored(0.5)) == pytest.approx(0.5, abs=0.1)


def test_an_empty_domain_is_refused_before_encoding(make) -> None:
    with pytest.raises(ValueError, match="no items"):
        make(limit=0)
