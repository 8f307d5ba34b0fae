"""What an editor can be told, in several wordings, and what is possible where it may choose.

An edit's name is `family/member`. The members of a family exclude each other. An ambiguous
instruction, `any/family`, leaves the member open: each of those possible for a source is a right
answer.
"""

from __future__ import annotations

import numpy as np

from .edits import HUES, SEASONS
from .emoji import STYLES, TONES
from .views import BACKGROUNDS


def _tone(skin: str) -> tuple[str, ...]:
    return (f"give it {skin} skin", f"make the skin {skin}", f"change the skin to {skin}")


def _style(style: str) -> tuple[str, ...]:
    return (
        f"redraw it in {style} style",
        f"make it {style} style",
        f"draw it in the {style} style",
    )


_RULES = {
    "black_and_white": ("make it black and white", "remove the color", "turn it black and white"),
    "sepia": ("make it sepia", "give it a sepia tone", "turn it sepia"),
    "night": ("make it night", "turn day into night", "as if it were night"),
    "inverted": ("invert the colors", "make it a negative", "turn it into a negative"),
    "pencil_sketch": (
        "turn it into a pencil sketch",
        "make it a pencil drawing",
        "sketch it with a pencil",
    ),
}
_PAINTINGS = {
    "starry_night": "a Starry Night painting",
    "watercolor": "a watercolor",
    "pastel": "a pastel drawing",
    "fauvist": "a Fauvist painting",
    "expressionist": "an Expressionist painting",
    "ink": "a pen and ink drawing",
}
PAINTINGS = tuple(_PAINTINGS)

PHRASINGS: dict[str, tuple[str, ...]] = {
    **{f"style/{style}": _style(style) for style in STYLES},
    "style/fluent-flat": (*_style("fluent-flat"), "make it flat", "flatten it"),
    "style/fluent-3d": (*_style("fluent-3d"), "make it 3D", "turn it into 3D"),
    "tone/default": _tone("yellow"),
    **{f"tone/{tone}": _tone(tone) for tone in TONES[1:]},
    **{
        f"colour/{colour}": (
            f"make it {colour}",
            f"color it {colour}",
            f"change its color to {colour}",
        )
        for colour in HUES
    },
    "flip/mirror": ("flip it", "mirror it", "flip it left to right"),
    **{
        f"background/{colour}": (
            f"on a {colour} background",
            f"put it on a {colour} background",
            f"make the background {colour}",
        )
        for colour in BACKGROUNDS
    },
    **{f"rule/{name}": phrasings for name, phrasings in _RULES.items()},
    **{
        f"painting/{name}": (
            f"turn it into {painting}",
            f"make it {painting}",
            f"redraw it as {painting}",
        )
        for name, painting in _PAINTINGS.items()
    },
    **{
        f"season/{season}": (f"make it {season}", f"turn it into {season}", f"as if in {season}")
        for season in SEASONS
    },
    "any/painting": ("turn it into a painting", "make it a painting", "paint it"),
    "any/colour": ("give it another color", "change its color", "make it another color"),
    "any/season": ("make it another season", "change the season", "turn it into another season"),
}
"""Name of an edit to its wordings, the plainest first."""

EDITS = tuple(name for name in PHRASINGS if not name.startswith("any/"))
AMBIGUOUS = tuple(name for name in PHRASINGS if name.startswith("any/"))


def family(name: str) -> str:
    """`painting` of `painting/pastel`."""
    return name.partition("/")[0]


def ambiguous_form(name: str) -> str | None:
    """The instruction that leaves the member of an edit's family open; None where there is none."""
    found = f"any/{family(name)}"
    return found if found in AMBIGUOUS else None


def wording(name: str, rng: np.random.Generator) -> str:
    """One of the wordings of an edit or an ambiguous instruction."""
    return str(rng.choice(PHRASINGS[name]))
