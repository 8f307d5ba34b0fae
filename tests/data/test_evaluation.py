from collections import Counter

import pytest

from edgegen.data.emoji import EmojiSet
from edgegen.data.evaluation import caption_number, evaluation_pictures, half_of


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet()


def test_the_halves_divide_each_split(emoji):
    for split in ("train", "cells", "concepts"):
        base = {i for i in emoji.indices(split) if emoji.pictures[i].tone == 0}
        dev, test = (evaluation_pictures(emoji, split, half) for half in ("dev", "test"))
        assert not set(dev) & set(test)
        assert set(dev) | set(test) == base == set(evaluation_pictures(emoji, split))
        # Half of each, within four standard deviations of a fair coin.
        assert abs(len(dev) - len(base) / 2) < 2 * len(base) ** 0.5
        assert len(dev) == len(set(dev))


def test_the_half_depends_on_concept_and_style_alone(emoji):
    narrow = EmojiSet(groups=["food-drink"], styles=["noto", "fluent"], tones=False, limit=40)
    wide = {(p.concept, p.style): half_of(emoji, p) for p in emoji.pictures}
    halves = [half_of(narrow, picture) for picture in narrow.pictures]
    assert halves == [wide[p.concept, p.style] for p in narrow.pictures]
    counts = Counter((p.style, half) for p, half in zip(narrow.pictures, halves, strict=True))
    assert min(counts.values()) > 10


def test_the_first_ones_are_a_mixed_sample(emoji):
    """The order is no order of the dataset: style shares of the first 600 are those of all."""
    order = evaluation_pictures(emoji, "train", "test")
    assert order == evaluation_pictures(emoji, "train", "test")
    every = Counter(emoji.pictures[i].style for i in order)
    first = Counter(emoji.pictures[i].style for i in order[:600])
    for style, count in every.items():
        share = count / len(order)
        assert abs(first[style] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5


def test_captions_have_numbers_of_their_own(emoji):
    base = [p for p in emoji.pictures if p.tone == 0]
    numbers = {caption_number(emoji, picture) for picture in base}
    assert len(numbers) == len(base)
    assert all(0 <= number < 2**64 for number in numbers)
