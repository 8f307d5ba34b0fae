"""Captions to evaluate on: a dev half to choose settings by, and a test half to score once."""

from __future__ import annotations

import hashlib
from typing import Literal

from .emoji import EmojiSet, Picture, Split

Half = Literal["dev", "test"]


def _number(purpose: str, emoji: EmojiSet, picture: Picture) -> int:
    # Salted by purpose: the dataset's own splits hash the bare code point.
    text = f"{purpose}:{emoji.concepts[picture.concept].hexcode}:{picture.style}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def half_of(emoji: EmojiSet, picture: Picture) -> Half:
    """The half of its split that a picture's caption is in: depends on concept and style alone."""
    return "test" if _number("half", emoji, picture) % 2 else "dev"


def caption_number(emoji: EmojiSet, picture: Picture) -> int:
    """A 64-bit number that depends on concept and style alone, to draw a caption's noise by.

    So a caption has the same noise in every selection, and no two captions share theirs.
    """
    return _number("noise", emoji, picture)


def evaluation_pictures(emoji: EmojiSet, split: Split, half: Half | None = None) -> list[int]:
    """Positions of the base forms of `split`, of one half of it or (None) of both.

    In an order drawn once and for all, so that the first n are a random sample, and a larger
    sample holds every smaller one.
    """
    found = [
        index
        for index in emoji.indices(split)
        if emoji.pictures[index].tone == 0 and half in (None, half_of(emoji, emoji.pictures[index]))
    ]
    return sorted(found, key=lambda index: _number("order", emoji, emoji.pictures[index]))
