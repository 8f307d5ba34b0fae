"""Pairs that an editor is judged by: of subjects, stills and clips that it was never shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from .edit_pairs import Source, Sources
from .instructions import ambiguous_form, family, wording
from .stream import sample_rng

_SEED = 20


def half_of(subject: str) -> Literal["dev", "test"]:
    """The half of the held-out pairs that a subject is in: depends on its name alone."""
    return "test" if _number("subject half", subject) % 2 else "dev"


@dataclass(frozen=True)
class Pair:
    """One held-out pair: source number `index`, asked for `instruction` in the words `text`."""

    index: int
    instruction: str
    text: str


def held_out_pairs(
    sources: Sources,
    half: Literal["dev", "test"],
    count: int,
    *,
    moved: bool = False,
    ambiguous: bool = False,
    tries: int = 50,
) -> list[Pair]:
    """Up to `count` different pairs, drawn once and for all: the first n are a random sample.

    A pair's source is drawn among those of the half, then a family of its edits, then a member,
    then a wording, all evenly.

    Args:
        sources: seen as they are, without a random view.
        moved: whether the target may have other outlines than the source.
        ambiguous: instructions with several right answers, instead of those with one.
        tries: draws for each pair, before fewer are given.
    """
    found: dict[tuple[int, str], Pair] = {}
    of_half: dict[int, bool] = {}
    for number in range(count * tries if len(sources) else 0):
        if len(found) == count:
            break
        rng = sample_rng(_SEED + 2 * moved + ambiguous, number)
        index = int(rng.integers(len(sources)))
        if not of_half.get(index, True):
            continue
        source = sources.source(index, None)
        of_half[index] = half_of(source.subject) == half
        allowed = _asked(source, moved, ambiguous) if of_half[index] else {}
        if not allowed:
            continue
        members = allowed[str(rng.choice(sorted(allowed)))]
        name = str(rng.choice(members))
        several = len(source.possible(name)) > 1
        if several if ambiguous else source.changes(name):
            found.setdefault((index, name), Pair(index, name, wording(name, rng)))
    return list(found.values())


def _asked(source: Source, moved: bool, ambiguous: bool) -> dict[str, list[str]]:
    allowed: dict[str, list[str]] = {}
    for name in source.targets:
        open_form = ambiguous_form(name)
        asked = open_form if ambiguous else name
        if asked is not None and (moved or name not in source.moved):
            allowed.setdefault(family(name), []).append(asked)
    return allowed


def _number(purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{name}".encode()).digest()[:8], "big")
