from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from edgegen.pipelines.bpe import train_clip_tokenizer

CAPTIONS = ["red apple, noto style", "a fox, fluent-3d style", "green apple, twemoji style"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_clip_tokenizer(CAPTIONS, 600, 16)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Words, and every kind of code point that UTF-8 can carry."""
    rng = np.random.default_rng(0)
    planes = [(1, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    odd = [chr(c) for low, high in planes for c in rng.integers(low, high, 200)]
    return [*CAPTIONS[:3], "", " ", "unseen words!", "ÉTÉ 🦊", "\x00\x7f", "".join(odd), *odd]


def test_nothing_is_unknown(tokenizer: CLIPTokenizer, texts: list[str]) -> None:
    end = tokenizer.eos_token_id
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        # The unknown token is the end token: in the middle it would end the text.
        assert ids.index(end) == len(ids) - 1, text


def test_text_comes_back(tokenizer: CLIPTokenizer) -> None:
    for text in (*CAPTIONS[:3], "unseen words", "été 🦊 漢字"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(
            " ", ""
        )


def test_common_words_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("Red APPLE") == ["red</w>", "apple</w>"]


def test_order_of_the_vocabulary(tokenizer: CLIPTokenizer) -> None:
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert len(names) == len(tokenizer) <= 600
    assert list(tokenizer.get_vocab().values()) != []
    assert names[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert all(len(name) == 1 for name in names[:256])
    assert all(len(name.removesuffix("</w>")) == 1 for name in names[256:512])
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.unk_token_id
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_padding_and_cutting(tokenizer: CLIPTokenizer) -> None:
    long = tokenizer("apple " * 50, padding="max_length", truncation=True).input_ids
    short = tokenizer("apple", padding="max_length", truncation=True).input_ids
    assert len(long) == len(short) == 16
    assert long[-1] == tokenizer.eos_token_id
    assert set(short[2:]) == {tokenizer.eos_token_id}


def test_saved_and_loaded(tokenizer: CLIPTokenizer, texts: list[str], tmp_path: Path) -> None:
    wanted = [tokenizer(text).input_ids for text in texts]
    tokenizer.save_pretrained(tmp_path / "new")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "new")
    assert [loaded(text).input_ids for text in texts] == wanted
    assert loaded.model_max_length == 16
    # The two files that every version of transformers reads.
    (tmp_path / "old").mkdir()
    tokenizer.backend_tokenizer.model.save(str(tmp_path / "old"))
    files = [str(tmp_path / "old" / name) for name in ("vocab.json", "merges.txt")]
    old = CLIPTokenizer(*files, model_max_length=16)
    assert [old(text).input_ids for text in texts] == wanted


def test_training_is_a_function_of_the_captions(tokenizer: CLIPTokenizer) -> None:
    again = train_clip_tokenizer(iter(CAPTIONS), 600, 16)
    assert again.get_vocab() == tokenizer.get_vocab()
