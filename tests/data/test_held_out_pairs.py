from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from painted import crops_folder

from edgegen.data.edit_pairs import CropSources, EmojiSources, Sources
from edgegen.data.emoji import EmojiSet
from edgegen.data.held_out_pairs import half_of, held_out_pairs
from edgegen.data.instructions import AMBIGUOUS, EDITS, PHRASINGS
from edgegen.data.painting import PaintedCrops
from edgegen.data.photos import HELD_OUT


@pytest.fixture(scope="module", params=["emoji", "natural"])
def sources(
    request: pytest.FixtureRequest, emoji_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Sources:
    if request.param == "emoji":
        return EmojiSources(EmojiSet(emoji_file), "train", 64)
    return CropSources(PaintedCrops(crops_folder(tmp_path_factory.mktemp("c")), "held_out"))


def test_halves_share_no_subject(sources: Sources) -> None:
    halves = {}
    for half in ("dev", "test"):
        pairs = held_out_pairs(sources, half, 30, moved=True)
        assert len(pairs) == len({(p.index, p.instruction) for p in pairs}) == 30
        halves[half] = {sources.source(pair.index, None).subject for pair in pairs}
        for pair in pairs:
            source = sources.source(pair.index, None)
            assert half_of(source.subject) == half
            assert pair.instruction in EDITS
            assert pair.text in PHRASINGS[pair.instruction]
            assert source.changes(pair.instruction)
    assert not halves["dev"] & halves["test"]


def test_a_larger_sample_holds_every_smaller_one(sources: Sources) -> None:
    assert held_out_pairs(sources, "dev", 20)[:7] == held_out_pairs(sources, "dev", 7)


def test_outlines_stay_unless_asked(sources: Sources) -> None:
    for moved in (False, True):
        pairs = held_out_pairs(sources, "dev", 40, moved=moved)
        some = [pair.instruction in sources.source(pair.index, None).moved for pair in pairs]
        assert any(some) == (moved and isinstance(sources, EmojiSources))


def test_ambiguous_pairs_have_several_answers(sources: Sources) -> None:
    pairs = held_out_pairs(sources, "dev", 10, ambiguous=True)
    assert pairs
    for pair in pairs:
        source = sources.source(pair.index, None)
        assert pair.instruction in AMBIGUOUS
        answers = source.possible(pair.instruction)
        assert len(answers) > 1
        pictures = {source.target(answer).tobytes() for answer in answers}
        assert len(pictures) == len(answers)


def test_no_more_pairs_than_there_are(tmp_path: Path) -> None:
    one = CropSources(PaintedCrops(crops_folder(tmp_path, held_out=2), "held_out"))
    pairs = held_out_pairs(one, "dev", 500, tries=3)
    assert len(pairs) <= 22  # one crop in this half, with 22 edits


def test_the_named_files_are_spread_over_both_halves() -> None:
    assert sorted(half_of(name) for name in HELD_OUT) == ["dev", "dev", "test", "test"]
    halves = [half_of(f"{number:X}") == "dev" for number in range(2000)]
    assert np.mean(halves) == pytest.approx(0.5, abs=0.04)
