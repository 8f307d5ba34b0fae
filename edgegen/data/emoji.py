"""The emoji dataset: the same ideas drawn in six styles, with captions and deterministic splits."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..assets import ROOT, file_sha256, verify

SIZE = 64
COLOUR_STEP = 8
STYLES = ("noto", "noto-v1", "twemoji", "fluent", "fluent-flat", "fluent-3d")
# The Fluent styles share geometry: seeing one of them is nearly seeing the others.
FAMILY = {style: style.split("-")[0] if style.startswith("fluent") else style for style in STYLES}
TONES = ("", "light", "medium-light", "medium", "medium-dark", "dark")
Split = Literal["train", "cells", "concepts"]


@dataclass(frozen=True)
class Concept:
    """What is drawn: one code point sequence with its English name."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def may_flip(self) -> bool:
        """False where a mirror image would contradict the label or mirror a text."""
        words = set(self.label.replace("-", " ").replace("\u2019", " ").split())
        directed = {"left", "right", "leftwards", "rightwards", "clockwise", "clock", "thirty"}
        directed |= {"waxing", "waning", "quarter", "crescent", "increasing", "decreasing"}
        lettered = {"button", "input", "calendar", "text", "100", "hundred", "letter", "abc"}
        lettered |= {"1st", "2nd", "3rd", "stop", "banknote", "newspaper", "globe"}
        return not words & (directed | lettered) and self.subgroup not in {"time", "alphanum"}


@dataclass(frozen=True)
class Picture:
    """One drawing. `tone` indexes `TONES`; 0 is the base form."""

    concept: int
    tone: int
    style: str


def write_emoji_file(
    path: Path,
    concepts: Sequence[dict[str, Any]],
    pictures: Sequence[tuple[int, int, str, np.ndarray]],
) -> None:
    """Write `(concept, tone, style, (64, 64, 4) uint8)` pictures as lossless WebP in one `.npz`."""

    def encode(picture: tuple[int, int, str, np.ndarray]) -> bytes:
        buffer = io.BytesIO()
        options = {"lossless": True, "quality": 80, "method": 6, "exact": True}
        Image.fromarray(picture[3]).save(buffer, "WEBP", **options)
        return buffer.getvalue()

    with ThreadPoolExecutor() as pool:
        blobs = list(tqdm(pool.map(encode, pictures), total=len(pictures), desc="compressing"))
    rows = [(concept, tone, STYLES.index(style)) for concept, tone, style, _ in pictures]
    temporary = path.with_name(path.name + ".tmp.npz")
    index = json.dumps({"styles": STYLES, "concepts": list(concepts)}, ensure_ascii=False)
    np.savez(
        temporary,
        index=np.frombuffer(index.encode(), dtype=np.uint8),
        rows=np.array(rows, dtype=np.int32),
        ends=np.cumsum([len(blob) for blob in blobs]).astype(np.int64),
        webp=np.frombuffer(b"".join(blobs), dtype=np.uint8),
    )
    os.replace(temporary, path)


def embedded_emoji() -> Path:
    """The dataset file inside the package, checked against its checksum."""
    verify(ROOT / "data")
    return ROOT / "data" / "emoji.npz"


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class EmojiSet:
    """The pictures of one file, filtered to a domain and divided into splits.

    Args:
        path: a file written by `write_emoji_file`; None for the embedded one.
        groups: Unicode groups kept, such as ``animals-nature``, or subgroups, such as
            ``food-fruit``; None keeps all but flags, symbols and components.
        styles: subset of `STYLES`.
        tones: keep skin-tone forms beside the base forms.
        limit: keep this many concepts at most, those drawn in most styles first, then in
            Unicode order.

    Raises:
        ValueError: an unknown group or style, with the allowed ones; a damaged file.
        FileNotFoundError: no such file.

    Splits, each a pure function of the code point (and style family):
        ``concepts``: 5 % of the concepts, in every style;
        ``cells``: 5 % of the remaining (concept, style family) pairs, of concepts drawn in at
        least two families;
        ``train``: the rest.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        groups: Sequence[str] | None = None,
        styles: Sequence[str] = STYLES,
        tones: bool = True,
        limit: int | None = None,
    ) -> None:
        path = embedded_emoji() if path is None else Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                index = json.loads(file["index"].tobytes())
                rows, ends = file["rows"], file["ends"]
                self._webp = file["webp"]
        except (ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path}: damaged, or not made by scripts/build_emoji.py") from error
        self.sha256 = file_sha256(path)
        self.concepts = [
            Concept(c["hexcode"], c["label"], tuple(c["tags"]), c["group"], c["subgroup"])
            for c in index["concepts"]
        ]
        known = sorted({concept.group for concept in self.concepts})
        finer = sorted({concept.subgroup for concept in self.concepts} - set(known))
        if groups is None:
            groups = [g for g in known if g not in {"flags", "symbols", "component"}]
        for name, given, allowed in [("group", groups, known + finer), ("style", styles, STYLES)]:
            if unknown := sorted(set(given) - set(allowed)):
                raise ValueError(f"unknown {name} {unknown[0]!r}; allowed: {', '.join(allowed)}")
        drawn: dict[int, set[str]] = {}
        for concept, _, style in rows:
            drawn.setdefault(int(concept), set()).add(STYLES[style])
        wanted = set(groups)
        kept = [i for i, c in enumerate(self.concepts) if {c.group, c.subgroup} & wanted]
        kept = [i for i in kept if i in drawn]
        if limit is not None:
            kept = sorted(sorted(kept, key=lambda i: -len(drawn[i]))[:limit])
        kept_set, starts = set(kept), np.concatenate([[0], ends[:-1]])
        self.pictures: list[Picture] = []
        self._spans: list[tuple[int, int]] = []
        for (concept, tone, style), start, end in zip(rows, starts, ends, strict=True):
            if concept in kept_set and STYLES[style] in styles and (tones or tone == 0):
                self.pictures.append(Picture(int(concept), int(tone), STYLES[style]))
                self._spans.append((int(start), int(end)))
        self._families = {i: {FAMILY[style] for style in drawn[i]} for i in kept}

    def __len__(self) -> int:
        return len(self.pictures)

    def rgba(self, index: int) -> np.ndarray:
        """(64, 64, 4) uint8, straight alpha."""
        start, end = self._spans[index]
        return np.array(Image.open(io.BytesIO(self._webp[start:end].tobytes())).convert("RGBA"))

    def split_of(self, picture: Picture) -> Split:
        """The split that `picture` belongs to."""
        hexcode = self.concepts[picture.concept].hexcode
        if _fraction(hexcode) < 0.05:
            return "concepts"
        families = sorted(self._families[picture.concept])
        held = [f for f in families if _fraction(f"{hexcode}/{f}") < 0.05]
        # A concept must stay known: one family at least is always trained on.
        if FAMILY[picture.style] in held[: len(families) - 1]:
            return "cells"
        return "train"

    def indices(self, split: Split) -> list[int]:
        """Positions in `pictures` of everything in `split`."""
        return [i for i, picture in enumerate(self.pictures) if self.split_of(picture) == split]

    def label(self, picture: Picture) -> str:
        """The concept's name, with the skin tone where there is one."""
        label = self.concepts[picture.concept].label
        return f"{label}, {TONES[picture.tone]} skin" if picture.tone else label

    def caption(self, picture: Picture) -> str:
        """``"{label}, {style} style"``."""
        return f"{self.label(picture)}, {picture.style} style"
