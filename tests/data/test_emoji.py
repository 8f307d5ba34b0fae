from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from edgegen import assets, configs
from edgegen.data.building import quantize_colours
from edgegen.data.emoji import (
    FAMILY,
    STYLES,
    Concept,
    EmojiSet,
    Picture,
    Split,
    embedded_emoji,
    write_emoji_file,
)

CONFIGS = Path(configs.__file__).parent


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet()


@pytest.fixture(scope="module")
def everything() -> EmojiSet:
    groups = {concept.group for concept in EmojiSet().concepts}
    return EmojiSet(groups=sorted(groups))


# The embedded file


def test_the_file_is_the_listed_one_and_small() -> None:
    path = embedded_emoji()
    listed = dict(
        reversed(line.split("  ")) for line in (path.parent / assets.SUMS).read_text().splitlines()
    )
    assert hashlib.sha256(path.read_bytes()).hexdigest() == listed["emoji.npz"]
    assert path.stat().st_size <= 25e6


def test_pictures_are_64_pixels_with_alpha_and_rounded_colours(everything: EmojiSet) -> None:
    allowed = {*range(0, 256, 8), 255}
    for index in range(0, len(everything), 500):
        rgba = everything.rgba(index)
        assert rgba.shape == (64, 64, 4)
        assert rgba.dtype == np.uint8
        assert set(np.unique(rgba)) <= allowed
        assert rgba[..., 3].any()
        assert not rgba[rgba[..., 3] == 0].any()


def test_counts_of_the_documentation(everything: EmojiSet) -> None:
    """Each row of figures in the data's README is that of the file."""

    def count(pictures: list[Picture]) -> list[int]:
        tones = sum(picture.tone > 0 for picture in pictures)
        return [len(pictures) - tones, tones]

    def cells(pictures: list[Picture]) -> list[int]:
        families = {(picture.concept, FAMILY[picture.style]) for picture in pictures}
        return [len({concept for concept, _ in families}), len(families)]

    wanted = [count([p for p in everything.pictures if p.style == style]) for style in STYLES]
    wanted.append(count(everything.pictures))
    domain = yaml.safe_load((CONFIGS / "domain" / "emoji.yaml").read_text())["groups"]
    for groups in (None, domain):
        emoji = EmojiSet(groups=groups)
        parts = [[emoji.pictures[i] for i in emoji.indices(s)] for s in get_args(Split)]
        for part in [*parts, emoji.pictures]:
            wanted.append([*cells(part), *count(part)][: 4 if groups is None else 3])
    text = (assets.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rows = [line.replace(",", "") for line in text.splitlines() if line.startswith("| ")]
    told = [[int(c) for c in row.split("|") if c.strip().isdigit()] for row in rows]
    assert [figures for figures in told if figures] == wanted
    assert f"{len(everything):,} drawings of {cells(everything.pictures)[0]:,} things" in text


# Splits


def test_default_groups_leave_out_flags_and_symbols(emoji: EmojiSet) -> None:
    groups = {emoji.concepts[picture.concept].group for picture in emoji.pictures}
    known = {concept.group for concept in emoji.concepts}
    assert known - groups == {"flags", "symbols", "component"} & known
    assert {"flags", "symbols"} <= known


def test_splits_are_disjoint_and_cover_everything(emoji: EmojiSet) -> None:
    parts = [emoji.indices(split) for split in ("train", "cells", "concepts")]
    assert sorted(index for part in parts for index in part) == list(range(len(emoji)))


def test_about_five_percent_are_held_out(emoji: EmojiSet) -> None:
    concepts = {p.concept for p in emoji.pictures}
    held = {emoji.pictures[i].concept for i in emoji.indices("concepts")}
    assert abs(len(held) / len(concepts) - 0.05) < 0.02
    cells = {(p.concept, FAMILY[p.style]) for p in emoji.pictures if p.concept not in held}
    hidden = {
        (emoji.pictures[i].concept, FAMILY[emoji.pictures[i].style]) for i in emoji.indices("cells")
    }
    assert abs(len(hidden) / len(cells) - 0.05) < 0.02


def test_held_out_concepts_and_cells_are_absent_from_training(emoji: EmojiSet) -> None:
    where: dict[tuple[int, str], set[str]] = defaultdict(set)
    trained: dict[int, set[str]] = defaultdict(set)
    for picture in emoji.pictures:
        split = emoji.split_of(picture)
        where[picture.concept, FAMILY[picture.style]].add(split)
        if split == "train":
            trained[picture.concept].add(FAMILY[picture.style])
    # One split a cell: Fluent siblings move together, skin tones follow their base form.
    assert all(len(splits) == 1 for splits in where.values())
    for (concept, _), splits in where.items():
        others = {split for (c, _), s in where.items() if c == concept for split in s}
        if splits == {"concepts"}:
            assert others == {"concepts"}
        if splits == {"cells"}:
            assert trained[concept]


def test_a_split_depends_on_nothing_but_the_picture(emoji: EmojiSet) -> None:
    split = {(p.concept, p.tone, p.style): emoji.split_of(p) for p in emoji.pictures}
    smaller = EmojiSet(groups=["food-drink"], styles=["fluent", "noto"], tones=False, limit=50)
    assert len(smaller)
    for picture in smaller.pictures:
        assert smaller.split_of(picture) == split[picture.concept, picture.tone, picture.style]


def test_one_family_is_trained_even_where_chance_would_hide_all(tmp_path: Path) -> None:
    # A code point whose families noto and twemoji both draw less than 0.05.
    def fraction(text: str) -> float:
        return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64

    families = ("noto", "twemoji")
    code = next(
        f"{n:X}"
        for n in range(10**6)
        if fraction(f"{n:X}") >= 0.05 and all(fraction(f"{n:X}/{f}") < 0.05 for f in families)
    )
    concept = {"hexcode": code, "label": "x", "tags": [], "group": "objects", "subgroup": "tool"}
    blank = np.full((64, 64, 4), 255, np.uint8)
    write_emoji_file(tmp_path / "a.npz", [concept], [(0, 0, style, blank) for style in families])
    made = EmojiSet(tmp_path / "a.npz")
    assert sorted(made.split_of(picture) for picture in made.pictures) == ["cells", "train"]
    write_emoji_file(tmp_path / "b.npz", [concept], [(0, 0, "noto", blank)])
    alone = EmojiSet(tmp_path / "b.npz")
    assert [alone.split_of(picture) for picture in alone.pictures] == ["train"]


# The domain


def test_filters(emoji: EmojiSet) -> None:
    small = EmojiSet(groups=["food-drink"], styles=["noto"], tones=False, limit=7)
    assert {p.style for p in small.pictures} == {"noto"}
    assert {p.tone for p in small.pictures} == {0}
    assert len({p.concept for p in small.pictures}) == 7
    assert {small.concepts[p.concept].group for p in small.pictures} == {"food-drink"}
    # Those drawn in most styles come first.
    drawn = defaultdict(set)
    for p in EmojiSet(groups=["food-drink"]).pictures:
        drawn[p.concept].add(p.style)
    assert min(len(drawn[p.concept]) for p in small.pictures) == max(map(len, drawn.values()))


def test_subgroups_are_parts_of_their_group() -> None:
    def drawn(*groups: str) -> set[Picture]:
        found = EmojiSet(groups=list(groups))
        return set(found.pictures)

    whole = EmojiSet(groups=["food-drink"])
    names = {whole.concepts[p.concept].subgroup for p in whole.pictures}
    parts = [drawn(name) for name in names]
    assert len(names) > 3
    assert set.union(*parts) == set(whole.pictures)
    assert sum(map(len, parts)) == len(whole)
    assert drawn("food-fruit", "food-drink") == set(whole.pictures)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"groups": ["pets"]}, "unknown group 'pets'"), ({"styles": ["oil"]}, "unknown style 'oil'")],
)
def test_unknown_names_are_refused_with_the_allowed_ones(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        EmojiSet(**arguments)
    line = str(refused.value)
    assert "\n" not in line
    assert ("food-drink" in line) if "groups" in arguments else all(s in line for s in STYLES)


def test_captions(emoji: EmojiSet) -> None:
    apple = next(i for i, c in enumerate(emoji.concepts) if c.label == "red apple")
    assert emoji.caption(Picture(apple, 0, "fluent-3d")) == "red apple, fluent-3d style"
    hand = next(i for i, c in enumerate(emoji.concepts) if c.label == "waving hand")
    assert emoji.caption(Picture(hand, 2, "noto")) == "waving hand, medium-light skin, noto style"


@pytest.mark.parametrize(
    ("label", "subgroup", "may"),
    [
        ("red apple", "food-fruit", True),
        ("backhand index pointing left", "hand", False),
        ("right-facing fist", "hand", False),
        ("left arrow", "arrow", False),
        ("twelve o\u2019clock", "time", False),
        ("ID button", "alphanum", False),
        ("calendar", "office", False),
        ("bright moon", "sky", True),
    ],
)
def test_flips_that_would_contradict_a_label(label: str, subgroup: str, may: bool) -> None:
    assert Concept("1", label, (), "g", subgroup).may_flip is may


def test_moons_charts_and_medals_have_a_side(everything: EmojiSet) -> None:
    may = {concept.label: concept.may_flip for concept in everything.concepts}
    sided = ["waxing crescent moon", "last quarter moon", "chart increasing", "1st place medal"]
    assert not any(may[label] for label in [*sided, "stop sign"])
    assert may["full moon"]
    assert may["fox"]


def test_no_label_with_a_side_may_be_flipped(everything: EmojiSet) -> None:
    for concept in everything.concepts:
        words = concept.label.lower().replace("-", " ").replace(",", " ").split()
        if {"left", "right", "clockwise", "counterclockwise"} & set(words):
            assert not concept.may_flip, concept.label


# The format


def test_write_and_read_is_lossless(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 256, (64, 64, 4), dtype=np.uint8) for _ in range(5)]
    drawn[1][..., 3] = 0  # colour under full transparency is kept too
    concepts = [
        {"hexcode": f"{n}", "label": f"é {n}", "tags": ["a"], "group": "g", "subgroup": "s"}
        for n in range(5)
    ]
    path = tmp_path / "emoji.npz"
    write_emoji_file(path, concepts, [(n, n % 3, STYLES[n], drawn[n]) for n in range(5)])
    assert list(tmp_path.iterdir()) == [path]
    read = EmojiSet(path)
    assert [c.label for c in read.concepts] == [c["label"] for c in concepts]
    assert read.pictures == [Picture(n, n % 3, STYLES[n]) for n in range(5)]
    for n in range(5):
        np.testing.assert_array_equal(read.rgba(n), drawn[n])
    first = path.read_bytes()
    write_emoji_file(path, concepts, [(n, n % 3, STYLES[n], drawn[n]) for n in range(5)])
    assert path.read_bytes() == first


def test_the_file_is_plain_webp_in_numpy(emoji: EmojiSet) -> None:
    with np.load(embedded_emoji(), allow_pickle=False) as file:
        rows, ends, webp = file["rows"], file["ends"], file["webp"]
        index = json.loads(file["index"].tobytes())
    assert tuple(index["styles"]) == STYLES
    number = len(rows) // 2
    picture = Image.open(io.BytesIO(webp[ends[number - 1] : ends[number]].tobytes()))
    assert picture.format == "WEBP"
    concept, tone, style = rows[number]
    everything = EmojiSet(groups=[index["concepts"][concept]["group"]], styles=[STYLES[style]])
    found = everything.pictures.index(Picture(int(concept), int(tone), STYLES[style]))
    np.testing.assert_array_equal(np.asarray(picture.convert("RGBA")), everything.rgba(found))


@pytest.mark.parametrize("content", [b"", b"nonsense" * 20, b"PK\x03\x04" + bytes(60)])
def test_a_damaged_file_takes_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: damaged"):
        EmojiSet(tmp_path / "x.npz")


def test_a_missing_or_cut_file(tmp_path: Path, emoji_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        EmojiSet(tmp_path / "no.npz")
    content = emoji_file.read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"x\.npz: damaged"):
        EmojiSet(tmp_path / "x.npz")


@pytest.mark.parametrize("step", [8, 4])
def test_rounded_colours(step: int) -> None:
    rgba = np.stack(np.broadcast_arrays(*([np.arange(256, dtype=np.uint8)[:, None]] * 4)), -1)
    rounded = quantize_colours(rgba, step)
    seen = rounded[..., 3] > 0
    assert np.abs(rounded.astype(int) - rgba)[seen].max() <= step // 2
    assert set(np.unique(rounded)) <= {*range(0, 256, step), 255}
    assert tuple(rounded[255, 0]) == (255,) * 4
    assert not rounded[~seen].any()
    assert rgba[~seen][:, 3].max() <= step // 2
    np.testing.assert_array_equal(quantize_colours(rounded, step), rounded)
