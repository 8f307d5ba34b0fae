"""One container being written: its video stream, and the sound beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from .clips import Timing, fitted

# Containers that hold H.264 without saying so, and those whose frames come at one rate only.
_H264 = ("mpegts", "flv")
_CONSTANT = ("avi",)
# Nearly transparent settings by encoder; others keep their defaults.
_OPTIONS = {
    # Without the macroblock tree, whose vector code reads past the end of narrow frames: the same
    # frames would not give the same bytes.
    "libx264": {"crf": "17", "preset": "medium", "x264-params": "mbtree=0"},
    "libvpx-vp9": {"crf": "20", "b:v": "0", "row-mt": "1", "cpu-used": "2"},
    "libx264rgb": {"qp": "0"},
    "mpeg4": {"q:v": "2", "flags": "+qscale", "global_quality": "236"},
    "libwebp_anim": {"quality": "90"},
}
_FIRST = 4  # packets of a stream of sound, by which it is seen whether a container holds it
_FORMATS = {"ffv1": "bgr0", "libx264rgb": "rgb24", "gif": "pal8", "libwebp_anim": "bgra"}


class Container:
    """A container with its video stream, and the sound's streams beside it."""

    def __init__(
        self,
        path: Path,
        target: str | io.BytesIO,
        size: tuple[int, int],
        timing: Timing,
        codec: str | None,
        audio: Path | None,
        audio_end: Fraction | None = None,
    ) -> None:
        self._path = path
        self._stack = ExitStack()
        self._audio_end = audio_end
        self.sound: dict[int, Any] = {}  # streams of the source by number → those in here
        self._source: Any = None
        self.container: Any  # PyAV tells its kinds of streams apart only as it runs
        self.stream: Any
        try:
            with self._told():
                self._open(target, size, timing, codec)
                if audio is not None:
                    self._source = self._stack.enter_context(av.open(str(audio)))
                    self._add_sound()
        except BaseException:
            self.abandon()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: object) -> None:
        with self._told():
            self._stack.close()

    def start(self) -> None:
        """Open the encoder and write the header."""
        with self._told():
            self.container.start_encoding()

    def write_start(self) -> None:
        """Write a blank frame and the first of every stream of sound."""
        blank = self._frame(np.zeros((1, 1, 3), np.uint8))
        blank.pts, blank.time_base = 0, self.stream.codec_context.time_base
        with self._told():
            self.container.mux([*self.stream.encode(blank), *self.stream.encode(None)])
            for index, stream in self.sound.items():
                own = self._source.demux(self._source.streams[index])
                for packet in islice((each for each in own if each.dts is not None), _FIRST):
                    packet.stream = stream
                    self.container.mux(packet)
                self._source.seek(0)

    def abandon(self) -> None:
        """Close without frames, which some containers complain about."""
        with suppress(av.FFmpegError):
            self._stack.close()

    def _open(
        self, target: str | io.BytesIO, size: tuple[int, int], timing: Timing, codec: str | None
    ) -> None:
        name = _format_name(self._path)
        options = {"loop": "0"} if name in ("gif", "webp") else {}
        if name == "gif":  # the muxer cannot know how long the last frame stands
            last = round(timing.durations[-1] * timing.time_base * 100)
            options["final_delay"] = str(max(1, last))
        container = av.open(target, "w", format=name, container_options=options)
        self.container = self._stack.enter_context(container)
        self.container.flags |= av.container.Flags.bitexact.value
        codec = codec or _encoder(self.container)
        try:
            self.stream = self.container.add_stream(codec, rate=timing.rate)
        except ValueError as error:
            raise ValueError(f"{self._path}: {codec} is no encoder for .{name}") from error
        context = self.stream.codec_context
        encoder = context.codec.name
        formats = [each.name for each in context.codec.video_formats or ()]
        plain = "yuv420p" if "yuv420p" in formats or not formats else formats[0]
        self.pixel_format = _FORMATS.get(encoder, plain)
        self.size = size
        if self.pixel_format == "yuv420p":
            self.size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        context.flags |= av.codec.context.Flags.frame_duration.value
        context.height, context.width = self.size
        context.pix_fmt = self.pixel_format
        context.options = dict(_OPTIONS.get(encoder, {}))
        context.time_base = self.stream.time_base = self._time_base(timing)
        if self.pixel_format == "yuv420p":  # what swscale makes of RGB
            context.colorspace = av.video.reformatter.Colorspace.SMPTE170M
            context.color_range = av.video.reformatter.ColorRange.MPEG

    def _time_base(self, timing: Timing) -> Fraction:
        name = self.container.format.name
        if name in ("gif", "webp"):
            return Fraction(1, 100 if name == "gif" else 1000)
        if name in _CONSTANT:
            return 1 / timing.rate
        if self.stream.codec_context.codec.name == "mpeg4":
            return max(timing.time_base, Fraction(1, 60000))  # it has 16 bits for it
        return timing.time_base

    def _add_sound(self) -> None:
        for stream in self._source.streams.audio:
            try:
                self.sound[stream.index] = self.container.add_stream_from_template(stream)
            except ValueError as error:
                raise ValueError(f"{self._path}: {error}") from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What FFmpeg complains of, in one line that names the file."""
        try:
            yield
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, os.strerror(error.errno), str(self._path)) from error
            raise ValueError(f"{self._path}: {' '.join(str(error).split())}") from error

    def write(self, pictures: Iterable[np.ndarray], timing: Timing) -> None:
        base = self.stream.codec_context.time_base
        sound, last = self._sound(), -1
        waiting = next(sound, None)
        spans = zip(pictures, timing.times, timing.durations, strict=True)
        for pixels, time, duration in spans:
            frame = self._frame(pixels)
            last = max(round(time * timing.time_base / base), last + 1 if last >= 0 else -(2**62))
            frame.pts, frame.time_base = last, base
            frame.duration = max(1, round(duration * timing.time_base / base))
            with self._told():
                self.container.mux(self.stream.encode(frame))
            while waiting is not None and waiting.dts * waiting.time_base <= last * base:
                waiting = self._mux_sound(waiting, sound)
        with self._told():
            self.container.mux(self.stream.encode(None))
        while waiting is not None:
            waiting = self._mux_sound(waiting, sound)

    def _frame(self, pixels: np.ndarray) -> Any:
        height, width = self.size
        pixels = fitted(pixels, (min(height, pixels.shape[0]), min(width, pixels.shape[1])))
        short = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
        pixels = np.ascontiguousarray(np.pad(pixels, short, mode="edge"))
        if self.pixel_format != "pal8":
            return av.VideoFrame.from_ndarray(pixels, format="rgb24")
        image = Image.fromarray(pixels).quantize(256)
        colours = np.frombuffer(bytes(image.getpalette() or b""), np.uint8).reshape(-1, 3)
        palette = np.zeros((256, 4), np.uint8)  # alpha first
        palette[:, 0] = 255
        palette[: len(colours), 1:] = colours
        both: Any = (np.asarray(image), palette)
        return av.VideoFrame.from_ndarray(both, format="pal8")

    def _sound(self) -> Iterator[Any]:
        if not self.sound:
            return
        for packet in self._source.demux([self._source.streams[i] for i in self.sound]):
            end = self._audio_end
            if packet.dts is not None and (end is None or packet.pts * packet.time_base < end):
                yield packet

    def _mux_sound(self, packet: Any, rest: Iterator[Any]) -> Any:
        packet.stream = self.sound[packet.stream.index]
        with self._told():
            self.container.mux(packet)
        return next(rest, None)


def sound_codecs(file: str | io.BytesIO) -> list[str]:
    """The codec of each stream of sound in a file, `?` for those that are not known."""
    with av.open(file) as container:
        contexts = [stream.codec_context for stream in container.streams.audio]
        return [context.codec.canonical_name if context else "?" for context in contexts]


def _encoder(container: Any) -> str:
    if "h264" in container.supported_codecs or container.format.name in _H264:
        return "libx264"
    default = container.default_video_codec
    return {"vp9": "libvpx-vp9", "webp": "libwebp_anim"}.get(default, default)


def _format_name(path: Path) -> str:
    """FFmpeg's name of the container that the ending stands for."""
    ending = path.suffix.lower().removeprefix(".")
    named = {"mkv": "matroska", "m4v": "mp4", "ts": "mpegts", "m2ts": "mpegts", "mpg": "mpeg"}
    name = named.get(ending, ending)
    if name not in av.formats_available:
        raise ValueError(f"no container with the ending .{ending}; mp4, mkv, webm, gif are some")
    return name
