"""The tokenizer of the embedded family, from the dataset's own captions."""

from __future__ import annotations

from transformers import CLIPTokenizer

from ..pipelines.bpe import train_clip_tokenizer
from .emoji import EmojiSet
from .stream import sample_rng
from .views import BACKGROUNDS, random_caption


def emoji_tokenizer(
    size: int = 3072, max_length: int = 32, emoji: str | None = None
) -> CLIPTokenizer:
    """Byte-pair tokenizer over one random caption of every training picture; no seed to choose."""
    pictures = EmojiSet(emoji)
    captions = [random_caption(pictures, i, sample_rng(0, i)) for i in pictures.indices("train")]
    captions += [f"on a {colour} background" for colour in BACKGROUNDS] * 50
    return train_clip_tokenizer(captions, size, max_length)
