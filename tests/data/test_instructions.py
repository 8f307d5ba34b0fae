from __future__ import annotations

import numpy as np
import pytest

from edgegen.assets import model_folder, model_names
from edgegen.data.edits import PHOTO_EDITS
from edgegen.data.instructions import (
    AMBIGUOUS,
    EDITS,
    PAINTINGS,
    PHRASINGS,
    ambiguous_form,
    family,
    wording,
)
from edgegen.data.painting import Painter
from edgegen.pipelines.parts import clip_tokenizer


def test_every_wording_means_one_thing() -> None:
    texts = [text for wordings in PHRASINGS.values() for text in wordings]
    assert len(texts) == len({text.lower() for text in texts})
    assert all(len(wordings) >= 3 for wordings in PHRASINGS.values())
    assert set(EDITS) | set(AMBIGUOUS) == set(PHRASINGS)


def test_every_edit_of_photographs_has_words() -> None:
    assert set(PHOTO_EDITS) | {f"painting/{name}" for name in PAINTINGS} <= set(EDITS)
    assert set(Painter.styles) == set(PAINTINGS)
    assert len(set(Painter.styles.values())) == len(PAINTINGS) == 6


def test_an_ambiguous_instruction_leaves_the_member_open() -> None:
    assert ambiguous_form("painting/ink") == "any/painting"
    assert ambiguous_form("rule/sepia") is None
    assert family("season/winter") == "season"
    for name in AMBIGUOUS:
        members = [edit for edit in EDITS if ambiguous_form(edit) == name]
        assert len(members) >= 4
        assert {family(member) for member in members} == {name.partition("/")[2]}


def test_every_wording_comes() -> None:
    rng = np.random.default_rng(0)
    drawn = {wording("style/fluent-flat", rng) for _ in range(200)}
    assert drawn == set(PHRASINGS["style/fluent-flat"])
    assert "make it flat" in drawn


def test_the_embedded_tokenizer_reads_all_wordings_whole_and_apart() -> None:
    if "emoji" not in model_names():
        pytest.skip("no embedded model")
    tokenizer = clip_tokenizer(model_folder("emoji"))
    seen = set()
    for wordings in PHRASINGS.values():
        for text in wordings:
            ids = tuple(tokenizer(text).input_ids)
            assert len(ids) <= tokenizer.model_max_length, text
            assert tokenizer.unk_token_id not in ids[:-1], text
            seen.add(ids)
    assert len(seen) == sum(map(len, PHRASINGS.values()))
