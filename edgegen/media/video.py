"""Video files, read frame by frame."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video."""
    return Path(path).suffix.lower() in VIDEOS


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) uint8 RGB each, one at a time.

    Needs PyAV. Raises ValueError where it is missing, where the file cannot be decoded, and where
    it holds no frame; FileNotFoundError for no file. Of a Matroska file that was cut off, FFmpeg
    gives the frames that are left, without a word.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise ValueError(f"{path}: videos need PyAV: pip install 'edgegen[photos]'") from error
    count = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                count += 1
    except (av.FFmpegError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: damaged, or no video ({reason})") from error
    if not count:
        raise ValueError(f"{path}: holds no frame")
