"""Clips: video files, animated pictures and folders of frames, read frame by frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from .pictures import find_pictures, read_picture

av.logging.set_level(None)  # its complaints come as errors

ANIMATIONS = (".webp", ".gif", ".apng")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video."""
    return Path(path).suffix.lower() in VIDEOS


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a clip.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        time: when it is shown, in units of the clip's `time_base`; later than the frame before.
        duration: for how long, in the same units; 0 where the file does not say.
    """

    pixels: np.ndarray
    time: int
    duration: int


@dataclass(frozen=True)
class Timing:
    """When the frames of a clip are shown.

    Attributes:
        time_base: seconds a unit.
        times, durations: of each frame, in units; times rise.
    """

    time_base: Fraction
    times: Sequence[int]
    durations: Sequence[int]

    @property
    def end(self) -> Fraction:
        """Seconds at which the last frame goes."""
        return (self.times[-1] + self.durations[-1]) * self.time_base

    @property
    def rate(self) -> Fraction:
        """Mean frames a second."""
        span = self.end - self.times[0] * self.time_base
        return (len(self.times) / span).limit_denominator(1001) if span else Fraction(25)


class Clip(Protocol):
    """Frames that can be gone through any number of times, in one size.

    Attributes:
        name: what to call it in messages.
        time_base: seconds a unit of time.
        aspect: width of a pixel over its height.
    """

    name: str
    time_base: Fraction
    aspect: Fraction

    def __iter__(self) -> Iterator[Frame]: ...


def open_clip(path: str | Path, rate: float | None = None) -> Clip:
    """The clip in a video file (whatever PyAV reads), an animated webp or gif, or a folder.

    Args:
        path: the file, or a folder of pictures, taken in the order of their names.
        rate: frames a second of a folder, which has no times of its own; default 25.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no video stream in it, a codec that is not known, a damaged file.
            Going through the frames raises it too: for a file without frames, or cut short.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FrameFolder(path, 25.0 if rate is None else rate)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if rate is not None:
        raise ValueError(f"rate={rate:g}: only for a folder of frames; {path} has times of its own")
    return Animation(path) if path.suffix.lower() in ANIMATIONS else VideoFile(path)


class VideoFile:
    """A video file; its first video stream that is more than a cover picture."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        with opened(self.path) as container:
            stream = _video_stream(container, self.name)
            self.time_base: Fraction = stream.time_base
            aspect = stream.codec_context.sample_aspect_ratio or Fraction(1)
            self.aspect = aspect if aspect > 0 else Fraction(1)
            # Asked of one frame only: PyAV's side data and its frame hold each other, so that
            # frames would stay in memory until the garbage collector comes by.
            first = next(container.decode(stream), None)
            self._matrix = None if first is None else _matrix(first)
            if self._matrix is not None and _turned(self._matrix):
                self.aspect = 1 / self.aspect

    def __iter__(self) -> Iterator[Frame]:
        with opened(self.path) as container:
            stream = _video_stream(container, self.name)
            stream.thread_type = "AUTO"
            step = round(1 / (stream.guessed_rate or Fraction(25)) / self.time_base)
            shape: tuple[int, ...] | None = None
            packets, time, last = 0, None, 0
            for packet in container.demux(stream):
                packets += _whole(packet)
                for frame in packet.decode():
                    pixels = _upright(frame.to_ndarray(format="rgb24"), self._matrix)
                    shape = shape or pixels.shape
                    given = frame.pts
                    if given is None:  # raw streams, and some old containers
                        given = 0 if time is None else time + max(1, step)
                    time = given if time is None else max(given, time + 1)
                    last = frame.duration or 0
                    yield Frame(fitted(pixels, shape[:2]), time, last)
            if shape is None:
                raise ValueError(f"{self.name}: holds no frame")
            # What the header promises, where the container has a place for it. Edit lists leave
            # out frames that are there.
            if "mp4" in container.format.name and packets < stream.frames:
                packets = _packets_there(self.path)
                if packets < stream.frames:
                    raise ValueError(
                        f"{self.name}: cut short: {packets} of {stream.frames} frames are there"
                    )
            # The last frame may be held for longer than the others.
            end = float(((time or 0) + max(1, step) + max(1, step, last)) * self.time_base)
            if end < _tagged_duration(stream):
                raise ValueError(
                    f"{self.name}: cut short: ends after {end:.2f} of "
                    f"{_tagged_duration(stream):.2f} seconds"
                )


class Animation:
    """An animated webp, gif or png; what is transparent is on white."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.time_base = Fraction(1, 1000)
        self.aspect = Fraction(1)
        with self._opened():
            pass

    def __iter__(self) -> Iterator[Frame]:
        with self._opened() as image:
            time = 0
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                image.load()
                duration = round(image.info.get("duration") or 0) or 100  # as browsers do
                rgba = image.convert("RGBA")
                ground = Image.new("RGBA", rgba.size, "white")
                ground.alpha_composite(rgba)
                yield Frame(np.asarray(ground.convert("RGB")), time, duration)
                time += duration

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            with Image.open(self.path) as image:
                yield image
        except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name}: damaged, or no picture ({_reason(error)})") from error


class FrameFolder:
    """A folder of pictures, `rate` a second. All are brought to the size of the first."""

    def __init__(self, folder: str | Path, rate: float = 25.0) -> None:
        if not 0 < rate <= 1000:
            raise ValueError(f"rate={rate:g}: must be frames a second, up to 1000")
        self.path = Path(folder)
        self.name = str(folder)
        self.time_base = 1 / Fraction(rate).limit_denominator(1001)
        self.aspect = Fraction(1)
        self.files = find_pictures(folder)

    def __iter__(self) -> Iterator[Frame]:
        shape: tuple[int, ...] | None = None
        for index, file in enumerate(self.files):
            pixels = read_picture(file)
            shape = shape or pixels.shape
            yield Frame(fitted(pixels, shape[:2]), index, 1)


def fitted(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """`pixels` (H, W, 3) uint8 resampled to `size` (height, width), or as they are."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(resized)


@contextmanager
def opened(path: Path, options: dict[str, str] | None = None) -> Iterator[Any]:
    """A file opened for reading by PyAV; what goes wrong inside is told in one line."""
    try:
        with av.open(str(path), options=options) as container:
            yield container
    except av.error.EOFError as error:
        raise ValueError(f"{path}: holds no frame") from error
    except av.FFmpegError as error:
        raise ValueError(f"{path}: damaged, or no video ({_reason(error)})") from error


def _video_stream(container: Any, name: str) -> Any:
    from av.stream import Disposition

    found = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not found:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ValueError(f"{name}: holds no video stream, only {kinds}")
    if found[0].codec_context is None or found[0].codec_context.codec is None:
        raise ValueError(f"{name}: its video is in a codec that is not known here")
    return found[0]


def _packets_there(path: Path) -> int:
    """Whole packets of the video of an mp4 file, whatever its edit list says of them."""
    with opened(path, {"ignore_editlist": "1"}) as container:
        return sum(map(_whole, container.demux(_video_stream(container, str(path)))))


def _whole(packet: Any) -> bool:
    return packet.size > 0 and not packet.is_corrupt


def _tagged_duration(stream: Any) -> float:
    """Seconds at which a Matroska stream ends by its own account; 0 where it gives none."""
    parts = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "").strip())
    if parts is None:
        return 0.0
    return 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])


def _matrix(frame: Any) -> np.ndarray | None:
    """How the frame is to be turned for display: (3, 3) int32, acting on row vectors (x, y, 1)."""
    data = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _turned(matrix: np.ndarray) -> bool:
    return abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def _upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turned by quarters and mirrored as the display matrix says."""
    if matrix is None:
        return pixels
    turned = _turned(matrix)
    if turned:
        pixels = pixels.swapaxes(0, 1)
    across, down = (matrix[1, 0], matrix[0, 1]) if turned else (matrix[0, 0], matrix[1, 1])
    pixels = pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    return np.ascontiguousarray(pixels)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
