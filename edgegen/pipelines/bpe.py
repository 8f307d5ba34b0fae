"""Training a byte-pair tokenizer that is a standard CLIPTokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer


def train_clip_tokenizer(captions: Iterable[str], size: int, max_length: int) -> CLIPTokenizer:
    """Byte-pair encoding over `captions` with CLIP's normalisation, words and special tokens.

    Args:
        captions: the training text.
        size: number of tokens at most, including 512 bytes and the two special tokens.
        max_length: `model_max_length`, special tokens included.

    The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, start, end. Every byte
    is in it in both positions, so nothing is unknown (CLIP's unknown token is its end token, which
    in the middle of a text would end it), and the end token has the highest number.
    """
    blank = CLIPTokenizer(vocab={}, merges=[]).backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet) - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    names = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(m) for m in merges)]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
