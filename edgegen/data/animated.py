"""Animated drawings of one motion in several skin tones: clips whose edit has a true target.

From the npm package `@lobehub/fluent-emoji-anim-1` (Microsoft's Fluent emoji, MIT). Hair may change
with the skin. The flow is not known.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageSequence

from ..assets import ROOT, verify
from .building import opened
from .emoji import TONES
from .held_out_pairs import half_of

PACKAGE = "@lobehub/fluent-emoji-anim-1@1.0.0"
ANIMATED_STYLE = "fluent-3d"  # in which the drawings of `emoji.EmojiSet` look like these
EMBEDDED = ROOT / "animated" / "animated.npz"
_CODES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")  # in the order of TONES[1:]
_DEFAULT = "default"


def write_animated(
    tarball: Path,
    output: Path,
    subjects: Sequence[str],
    tones: Sequence[str],
    *,
    size: int = 96,
    frames: int = 16,
    quality: int = 85,
) -> int:
    """Write the clips of each subject in its default form and in `tones`; returns how many.

    Args:
        tarball: the package, as `npm pack` leaves it.
        output: an `.npz` file: `SUBJECT_TONE` to the bytes of an animated WebP.
        subjects: code points as in the package, without skin tone and variation selector.
        tones: such as `dark`, see `emoji.TONES`.
        size: side in pixels; the background becomes white.
        frames: of each clip, evenly spaced over the animation.
        quality: of WebP.

    Raises ValueError for a tone that does not exist, a subject that the package lacks in one of
    the tones, or tones whose animations differ in length.
    """
    for tone in tones:
        if tone not in TONES[1:]:
            raise ValueError(f"tones={tone}: allowed are {', '.join(TONES[1:])}")
    wanted = {f"{subject}_{tone}" for subject in subjects for tone in (_DEFAULT, *tones)}
    clips: dict[str, np.ndarray] = {}
    lengths: dict[str, set[int]] = {}
    with opened(tarball, "damaged") as archive:
        for member in archive:  # in order: seeking back in a gzip reads it again from the start
            key = _key(Path(member.name))
            handle = archive.extractfile(member) if key in wanted else None
            if key is None or handle is None:
                continue
            pictures, length = _read(handle.read(), size, frames)
            lengths.setdefault(key.partition("_")[0], set()).add(length)
            buffer = io.BytesIO()
            more = {"append_images": pictures[1:], "duration": 80, "loop": 0, "quality": quality}
            pictures[0].save(buffer, "webp", save_all=True, **more)
            clips[key] = np.frombuffer(buffer.getvalue(), np.uint8)
    if missing := sorted(wanted - set(clips)):
        raise ValueError(f"{tarball}: holds no animation {missing[0]}")
    if uneven := sorted(subject for subject, each in lengths.items() if len(each) > 1):
        raise ValueError(f"{tarball}: the animations of {uneven[0]} differ in length")
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **dict(sorted(clips.items())))  # type: ignore[arg-type]
    return len(clips)


class AnimatedTones:
    """The clips that `write_animated` wrote, of one half of the subjects.

    Args:
        half: which subjects, as `held_out_pairs.half_of` has them.
        file: None for the embedded ones.
        size: side in pixels; clips of another are resampled.

    Attributes:
        asks: (subject, tone to be given), sorted.

    Raises ValueError for a file of another kind.
    """

    def __init__(
        self, half: Literal["dev", "test"], file: str | Path | None = None, size: int = 96
    ) -> None:
        if file is None:
            verify(EMBEDDED.parent)
        self.file, self.size = EMBEDDED if file is None else Path(file), size
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                self._clips = {name: kept[name].tobytes() for name in kept.files}
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{self.file}: must be a file of write_animated") from error
        names = [name.rpartition("_") for name in sorted(self._clips)]
        self.asks = [
            (subject, tone)
            for subject, _, tone in names
            if tone != _DEFAULT and half_of(subject) == half
        ]

    def clip(self, subject: str, tone: str = _DEFAULT) -> np.ndarray:
        """(T, S, S, 3) uint8."""
        size = (self.size, self.size)
        with Image.open(io.BytesIO(self._clips[f"{subject}_{tone}"])) as file:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(file)]
        sized = [each if each.size == size else each.resize(size, _LANCZOS) for each in frames]
        return np.stack([np.asarray(each) for each in sized])


_LANCZOS = Image.Resampling.LANCZOS


def subject_of(codes: Sequence[str]) -> str:
    """How a subject is called here, from its code points in hexadecimal."""
    parts = [code.lower() for code in codes]
    return "-".join(part for part in parts if part != "fe0f" and part not in _CODES)


def _key(path: Path) -> str | None:
    parts = path.stem.lower().split("-")
    codes = [part for part in parts if part in _CODES]
    if path.suffix != ".webp" or len(codes) > 1:
        return None
    tone = TONES[1 + _CODES.index(codes[0])] if codes else _DEFAULT
    return f"{subject_of(parts)}_{tone}"


def _read(data: bytes, size: int, frames: int) -> tuple[list[Image.Image], int]:
    """Evenly spaced frames on white, and how many there are."""
    with Image.open(io.BytesIO(data)) as file:
        length = getattr(file, "n_frames", 1)
        made = []
        for place in np.linspace(0, length - 1, frames).round().astype(int):
            file.seek(int(place))
            # Premultiplied while it shrinks, so that hidden colours do not bleed into edges.
            frame = file.convert("RGBA").convert("RGBa").resize((size, size), _LANCZOS)
            white = Image.new("RGBA", frame.size, "white")
            white.alpha_composite(frame.convert("RGBA"))
            made.append(white.convert("RGB"))
    return made, length
