from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from painted import crops_folder, paint

from edgegen.data.edit_pairs import CropSources, EmojiSources, Source, change, drawn_edits
from edgegen.data.edits import sepia
from edgegen.data.emoji import FAMILY, STYLES, TONES, EmojiSet
from edgegen.data.instructions import EDITS, PAINTINGS, ambiguous_form, family
from edgegen.data.painting import PaintedCrops
from edgegen.data.stream import sample_rng
from edgegen.data.views import BACKGROUNDS


def on(rgba: np.ndarray, colour: str) -> np.ndarray:
    """Drawings of the small dataset are opaque or absent in every pixel."""
    return np.where(rgba[..., 3:] == 255, rgba[..., :3], BACKGROUNDS[colour]).astype(np.uint8)


@pytest.fixture(scope="module")
def emoji(emoji_file: Path) -> EmojiSet:
    return EmojiSet(emoji_file)


def named(emoji: EmojiSet, sources: EmojiSources, tone: int, style: str) -> list[int]:
    return [
        number
        for number, index in enumerate(sources.items)
        if (emoji.pictures[index].tone, emoji.pictures[index].style) == (tone, style)
    ]


def test_targets_are_the_same_drawing_in_another_style_or_tone(emoji: EmojiSet) -> None:
    sources = EmojiSources(emoji, "train", size=64)
    seen = Counter()
    for number, index in enumerate(sources.items):
        picture, source = emoji.pictures[index], sources.source(number)
        assert np.array_equal(source.picture, on(emoji.rgba(index), "white"))
        assert source.subject == emoji.concepts[picture.concept].hexcode
        for other in sources.items:
            wanted = emoji.pictures[other]
            if wanted.concept != picture.concept or other == index:
                continue
            if wanted.tone == picture.tone:
                name = f"style/{wanted.style}"
                outlines = FAMILY[wanted.style] == FAMILY[picture.style]
            elif wanted.style == picture.style:
                name, outlines = f"tone/{TONES[wanted.tone] or 'default'}", True
            else:
                continue
            seen[family(name)] += 1
            assert np.array_equal(source.target(name), on(emoji.rgba(other), "white"))
            assert (name not in source.moved) == outlines
    assert seen["style"] > 500
    assert seen["tone"] > 20


def test_held_out_drawings_are_never_a_target(emoji: EmojiSet) -> None:
    sources = EmojiSources(emoji, "train", size=64)
    held = {(p.concept, p.style) for p in emoji.pictures if emoji.split_of(p) != "train"}
    assert held
    for number, index in enumerate(sources.items):
        concept = emoji.pictures[index].concept
        styles = [n.partition("/")[2] for n in sources.source(number).targets if "style/" in n]
        assert not {(concept, style) for style in styles} & held
    subjects = {sources.source(n).subject for n in range(len(sources))}
    concepts = EmojiSources(emoji, "concepts", size=64)
    assert not subjects & {concepts.source(n).subject for n in range(len(concepts))}


def test_exact_edits_of_a_drawing(emoji: EmojiSet) -> None:
    sources = EmojiSources(emoji, "train", size=64)
    source, rgba = sources.source(3), emoji.rgba(sources.items[3])
    assert np.array_equal(source.target("flip/mirror"), on(rgba, "white")[:, ::-1])
    assert "flip/mirror" in source.moved
    assert np.array_equal(source.target("background/blue"), on(rgba, "blue"))
    assert "background/white" not in source.targets
    blue = source.target("colour/blue")
    outside = rgba[..., 3] == 0
    assert np.array_equal(blue[outside], source.picture[outside])  # the drawing alone changes
    inside = blue[~outside].astype(int)
    assert (inside[:, 2] >= inside.max(1) - 1).all()


def test_a_view_is_the_same_for_source_and_target(emoji: EmojiSet) -> None:
    sources = EmojiSources(emoji, "train", size=96, coloured=1.0)
    views = [sources.source(5, sample_rng(1, n)) for n in range(8)]
    assert len({view.picture.tobytes() for view in views}) == 8
    again = sources.source(5, sample_rng(1, 0))
    assert np.array_equal(views[0].picture, again.picture)
    for view in views:
        assert view.picture.shape == (96, 96, 3)
        assert len([name for name in view.targets if "background/" in name]) == 9
        mirrored = view.target("flip/mirror")
        assert np.array_equal(mirrored[:, ::-1], view.picture)
        # Where the background is all there is, nothing but the background's edit changes it.
        corner = tuple(view.picture[0, 0])
        assert corner in BACKGROUNDS.values()
        assert tuple(view.target("style/noto" if "style/noto" in view.targets else
                                 "style/twemoji")[0, 0]) == corner  # fmt: skip


def test_crops_have_rules_and_paintings(tmp_path: Path) -> None:
    crops = PaintedCrops(crops_folder(tmp_path), "train")
    source = CropSources(crops).source(2, None)
    assert source.subject == crops.file(2)
    assert np.array_equal(source.picture, crops.crop(2))
    assert np.array_equal(source.target("rule/sepia"), sepia(crops.crop(2)))
    for number, name in enumerate(PAINTINGS):
        assert np.array_equal(source.target(f"painting/{name}"), paint(crops.crop(2))[number])
    assert source.moved == frozenset()
    # A known list of right answers, those of them that change the picture.
    assert set(source.possible("any/painting")) == {f"painting/{name}" for name in PAINTINGS}
    assert len(source.possible("any/season")) == 4
    assert source.possible("rule/sepia") == ["rule/sepia"]
    assert source.possible("style/noto") == []
    assert set(source.targets) <= set(EDITS)


def test_what_changes_nothing_is_no_edit() -> None:
    picture = np.full((8, 8, 3), (200, 30, 30), np.uint8)
    drawn = {"colour/red": lambda: picture, "colour/blue": lambda: picture[..., ::-1]}
    source = Source(picture, "red square", "emoji", drawn, frozenset())
    assert source.possible("any/colour") == ["colour/blue"]
    assert drawn_edits(source, 5, sample_rng(0, 0)) == ["colour/blue"]
    assert change(picture, source.target("colour/blue")) == pytest.approx(
        np.sqrt(2 * 170**2 / 3) / 255
    )


def test_edits_are_drawn_by_family(tmp_path: Path) -> None:
    source = CropSources(PaintedCrops(crops_folder(tmp_path), "train")).source(0, None)
    weights = {"painting": 0.5, "rule": 0.25, "season": 0.25, "colour": 0.0}
    first = Counter(
        family(drawn_edits(source, 1, sample_rng(0, n), weights)[0]) for n in range(600)
    )
    assert first["painting"] / 600 == pytest.approx(0.5, abs=0.07)
    assert first["season"] / 600 == pytest.approx(0.25, abs=0.07)
    assert first["colour"] == 0
    many = drawn_edits(source, 99, sample_rng(0, 0), weights)
    assert len(many) == len(set(many))
    assert {family(name) for name in many} == {"painting", "rule", "season"}
    with pytest.raises(ValueError, match="unknown family 'weather'; allowed: style, tone"):
        drawn_edits(source, 1, sample_rng(0, 0), {"weather": 1.0})


def test_names_fit_the_dataset() -> None:
    assert {f"style/{style}" for style in STYLES} <= set(EDITS)
    assert {ambiguous_form(name) for name in EDITS} == {
        None, "any/painting", "any/colour", "any/season",
    }  # fmt: skip
