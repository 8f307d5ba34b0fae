"""Clips written to video files, animated pictures and folders: whole, or not at all."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .clips import Timing
from .container import Container, sound_codecs


def is_folder(path: Path) -> bool:
    """Whether `path` names a folder of frames rather than a file: it has no ending, or exists."""
    return path.is_dir() or not path.suffix


def check_output(
    path: Path,
    size: tuple[int, int],
    timing: Timing,
    audio: Path | None = None,
    codec: str | None = None,
) -> None:
    """Raises ValueError where `write_clip` with the same arguments could not do its work."""
    if is_folder(path):
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path}: is a folder with something in it; give a new one")
        return
    _try_out(path, size, timing, None, codec)
    if audio is None:
        return
    try:
        wanted = sound_codecs(str(audio))
    except av.FFmpegError as error:
        raise ValueError(f"{audio}: {' '.join(str(error).split())}") from error
    if "?" in wanted:
        raise ValueError(f"{audio}: its sound is in a codec that is not known here: audio=false")
    why = "it could not be read back"
    try:
        found = _try_out(path, size, timing, audio, codec)
        if len(found) == len(wanted) and "?" not in found:
            return
    except (ValueError, OSError) as error:  # as containers say no, each in its own words
        why = str(error).removeprefix(f"{path}: ")
    raise ValueError(
        f"{path}: cannot hold the sound ({', '.join(wanted)}): {why}: give another ending (.mkv "
        "holds all), or audio=false"
    )


def _try_out(
    path: Path, size: tuple[int, int], timing: Timing, audio: Path | None, codec: str | None
) -> list[str]:
    """Open the container in memory; with sound, write its start, and the codecs that are read."""
    written = io.BytesIO()
    output = Container(path, written, size, timing, codec, audio)
    try:
        output.start()
        if not output.sound:
            return []
        output.write_start()
    finally:
        output.abandon()
    written.seek(0)
    return sound_codecs(written)


def holds_clip(folder: Path, frames: int) -> bool:
    """Whether `folder` is what `write_clip` makes of so many frames, by the names of its files."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return names == {_frame_name(index) for index in range(frames)}


def write_clip(
    path: Path,
    pictures: Iterable[np.ndarray],
    timing: Timing,
    *,
    aspect: Fraction = Fraction(1),
    audio: Path | None = None,
    audio_end: Fraction | None = None,
    codec: str | None = None,
) -> None:
    """Write the frames of a clip; the file (or folder) appears when it is complete.

    The ending of `path` chooses the container: whatever PyAV writes, webp and gif animations too;
    without one, the frames become PNG files in a new folder. Times are kept as far as the container
    can: whole milliseconds in mkv, webm and webp, hundredths of a second in gif, one rate in avi.
    The same frames give the same bytes, on the same machine.

    Args:
        pictures: (H, W, 3) uint8 RGB, as many as `timing` has times. Taken one by one. Where the
            codec stores colours by twos, an odd last row or column is repeated.
        aspect: width of a pixel over its height.
        audio: a video file whose sound is copied, packet by packet; until `audio_end` (seconds),
            or all of it.
        codec: an encoder of FFmpeg such as `libx265` or `ffv1` (lossless); default by container.

    Raises:
        ValueError: a container or codec that PyAV does not write, or that cannot hold the sound.
        OSError: no space left, and the like.
    """
    # Always the same name: what a killed process left is written over.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(temporary)
    try:
        if is_folder(path):
            _write_folder(temporary, pictures)
            if path.is_dir():
                path.rmdir()
        else:
            _write_file(temporary, pictures, timing, aspect, audio, audio_end, codec)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _write_folder(folder: Path, pictures: Iterable[np.ndarray]) -> None:
    folder.mkdir()
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / _frame_name(index))


def _frame_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_file(
    path: Path,
    pictures: Iterable[np.ndarray],
    timing: Timing,
    aspect: Fraction,
    audio: Path | None,
    audio_end: Fraction | None,
    codec: str | None,
) -> None:
    pictures = iter(pictures)
    first = next(pictures)
    size = (first.shape[0], first.shape[1])
    with Container(path, str(path), size, timing, codec, audio, audio_end) as output:
        output.stream.codec_context.sample_aspect_ratio = aspect
        output.write(_chain(first, pictures), timing)
    if path.suffix.lower() == ".webp":
        _set_last_duration(path, round(timing.durations[-1] * timing.time_base * 1000))


def _chain(first: np.ndarray, rest: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _set_last_duration(path: Path, milliseconds: int) -> None:
    """Of a webp animation, whose encoder makes the last frame last as long as the mean one."""
    with open(path, "r+b") as file:
        file.seek(12)
        place = None
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            place = file.tell() if kind == b"ANMF" else place
            file.seek(length + length % 2, os.SEEK_CUR)
        if place is not None:
            file.seek(place + 12)
            file.write(milliseconds.to_bytes(3, "little"))
