from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from painted import SIZE, crops_folder
from transformers import CLIPTokenizer

from edgegen.data import edit_latents
from edgegen.data.edit_latents import EditData
from edgegen.data.edits import PHOTO_EDITS
from edgegen.data.instructions import AMBIGUOUS, EDITS, PHRASINGS, ambiguous_form, family
from edgegen.data.moving_stills import moved_alike
from edgegen.data.photos import is_held_out
from edgegen.data.stream import sample_rng

SOURCES, EACH = 6, 3


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crops_folder(tmp_path_factory.mktemp("crops"))


@pytest.fixture
def make(emoji_file: Path, vae_folder: Path, clip_folder: Path, crops: Path) -> Any:
    def build(**options: Any) -> EditData:
        given = {"crops": crops, "size": SIZE, "sources": SOURCES, "edits": EACH, "batch_size": 2}
        vae = AutoencoderKL.from_pretrained(vae_folder)
        tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
        data = EditData(vae, tokenizer, emoji=str(emoji_file), **{**given, **options})
        data.setup()
        return data

    return build


def mode(data: EditData, picture: np.ndarray) -> torch.Tensor:
    pixels = torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        return data.vae.encode(pixels).latent_dist.mode()[0]


def test_latents_are_those_of_source_and_target(make: Any) -> None:
    data = make(drop_text=0, drop_image=0, drop_both=0)
    data.vae.register_to_config(scaling_factor=0.5)
    kinds = set()
    for number in range(SOURCES):
        source, names = data.drawn(number)
        kinds.add(source.kind)
        for place, name in enumerate(names):
            item = number * EACH + place
            before, after, _ = data.sample(item, np.random.default_rng(0))
            # The source as it is, the target scaled: as the pipeline has them.
            torch.testing.assert_close(before, mode(data, source.picture), atol=5e-3, rtol=1e-3)
            wanted = mode(data, source.target(name)) * 0.5
            torch.testing.assert_close(after, wanted, atol=5e-3, rtol=1e-3)
            assert EDITS[data.names[number, place]] == name
    assert kinds == {"emoji", "natural"}


def test_pairs_move_alike(make: Any) -> None:
    """Rules that work pixel by pixel give the same before and after a move."""
    families = {"rule": 1.0}
    data = make(affine=0.5, families=families, natural=1.0, sources=12)
    still = make(families=families, natural=1.0, sources=12)
    moved = 0
    for number in range(12):
        source, names = data.drawn(number)
        rows, plain = (each._shards[0]["latents"][number].float() for each in (data, still))
        if torch.equal(rows, plain):
            continue
        moved += 1
        rng = sample_rng(data.seed + 2, number)
        assert rng.random() < 0.5
        before, *after = moved_alike([source.picture, *map(source.target, names)], rng)
        assert np.abs(before.astype(int) - source.picture).mean() > 1
        for name, picture, latent in zip(names, after, rows[1:], strict=False):
            torch.testing.assert_close(latent, mode(data, picture), atol=5e-3, rtol=1e-3)
            if name in ("rule/inverted", "rule/night"):
                again = PHOTO_EDITS[name](before)
                assert np.abs(picture.astype(int) - again).max() <= 2
    assert 2 < moved < 10
    with pytest.raises(ValueError, match="flip: must be 0"):
        make(affine=0.5)


def test_instructions_name_the_edit_or_leave_it_open(make: Any) -> None:
    data = make(ambiguous=0.5, drop_text=0, drop_image=0, drop_both=0)
    counts: Counter[bool] = Counter()
    for item in data.train_set.items:
        name = EDITS[data.names[item // EACH, item % EACH]]
        for seed in range(20):
            asked = data.instruction(item, np.random.default_rng([item, seed]))
            assert asked in (name, ambiguous_form(name))
            if ambiguous_form(name):
                counts[asked in AMBIGUOUS] += 1
        tokens = data.sample(item, np.random.default_rng(3))[2]
        allowed = [*PHRASINGS[name], *PHRASINGS.get(f"any/{family(name)}", ())]
        encode = {"padding": "max_length", "truncation": True}
        assert tokens.tolist() in [data.tokenizer(text, **encode).input_ids for text in allowed]
    assert counts[True] / counts.total() == pytest.approx(0.5, abs=0.1)


def test_text_and_image_are_dropped_for_the_two_guidance_scales(make: Any) -> None:
    data = make(drop_text=0.1, drop_image=0.2, drop_both=0.3)
    empty = data.tokenizer("", padding="max_length", truncation=True).input_ids
    item, counts = data.train_set.items[0], Counter()
    for seed in range(1000):
        source, target, tokens = data.sample(item, np.random.default_rng(seed))
        counts[tokens.tolist() == empty, bool((source == 0).all())] += 1
        assert not (target == 0).all()
    for key, share in {(True, False): 0.1, (False, True): 0.2, (True, True): 0.3}.items():
        assert counts[key] / 1000 == pytest.approx(share, abs=0.05)


def test_latents_are_kept_and_a_stopped_encoding_goes_on(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_latents, "SHARD", 2)
    whole = make()
    kept = make(cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3
    (folder / "0000002.safetensors").unlink()
    rows = []
    row = EditData._row
    monkeypatch.setattr(EditData, "_row", lambda *a: (rows.append(a[1]), row(*a))[1])
    again = make(cache=tmp_path)
    assert rows == [2, 3]
    for number in range(12):
        for a, b, c in zip(*(d.train_set[number] for d in (whole, kept, again)), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("options", [{"seed": 1}, {"natural": 0.2}, {"limit": 30}, {"crops": None}])
def test_the_cache_knows_what_it_was_made_of(
    make: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    for given in ({}, options):
        make(cache=tmp_path, sources=1, **given)
    assert len(list(tmp_path.iterdir())) == 2


def test_training_and_examples_share_no_subject(make: Any, crops: Path) -> None:
    data = make()
    trained = {data.drawn(number)[0].subject for number in range(300)}
    held = {c.hexcode for c in data.emoji.concepts if c.hexcode not in trained}
    examples = data.examples(10)
    assert len(examples) == 10
    for source, text, target in examples:
        assert source.shape == target.shape == (SIZE, SIZE, 3)
        assert any(text in wordings for wordings in PHRASINGS.values())
        assert not np.array_equal(source, target)
    assert held
    assert not any(is_held_out(Path(name)) for name in trained if name.endswith(".png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_text": 0.6, "drop_both": 0.6}, "together exceed 1"),
        ({"natural": 2}, r"data\.natural=2: must be a share"),
        ({"size": 30}, r"data\.size=30: must be a multiple of 8"),
        ({"size": 64}, "holds crops of 32 pixels"),
        ({"crops": "nowhere"}, "no crops there"),
        ({"families": {"moon": 1}}, "unknown family 'moon'"),
    ],
)
def test_mistakes_are_told(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(**options)
