"""Clips there and back: pixels, times, sound; and files that are no good."""

from __future__ import annotations

import gc
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from edgegen.media.clip_writing import check_output, write_clip
from edgegen.media.clips import FrameFolder, Timing, VideoFile, is_video, open_clip

TIMES = [0, 40, 120, 130, 500, 640, 700, 1500]  # milliseconds: a variable frame rate
LAST = 210


def pictures(count: int, height: int = 24, width: int = 32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def smooth(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    y, x = np.mgrid[0:height, 0:width]
    return [
        np.stack([2 * x + 10 * i, 3 * y + 40, 200 - x - y], -1).clip(0, 255).astype(np.uint8)
        for i in range(count)
    ]


def timing(base: Fraction = Fraction(1, 1000)) -> Timing:
    times = [round(Fraction(t, 1000) / base) for t in TIMES]
    spans = [b - a for a, b in pairwise(times)]
    return Timing(base, times, [*spans, round(Fraction(LAST, 1000) / base)])


def record(path: Path, frames: list[np.ndarray], seconds: float = 1.8, codec: str = "aac") -> Path:
    """H.264 at uneven times with a tone beside it, written by PyAV alone."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=25), out.add_stream(codec, rate=16000)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio.codec_context.layout = "mono"
        for time, pixels in zip(TIMES, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        wave = (9000 * np.sin(np.arange(int(16000 * seconds)) / 6)).astype(np.int16)
        for start in range(0, len(wave), 1024):
            part = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "s16", "mono")
            part.sample_rate, part.pts = 16000, start
            out.mux(audio.encode(part))
        out.mux(audio.encode(None))
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return record(tmp_path / "recorded.mp4", smooth(len(TIMES)))


def sound(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        packets = [p for p in container.demux(stream) if p.size]
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets]


def seconds(path: Path) -> list[float]:
    clip = open_clip(path)
    return [float(frame.time * clip.time_base) for frame in clip]


# There and back


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "ffv1"), ("a.mp4", "libx264rgb"), ("a", None)]
)
@pytest.mark.parametrize("size", [(24, 32), (23, 31), (1, 5)])
def test_lossless_codecs_keep_every_pixel(
    tmp_path: Path, name: str, codec: str | None, size: tuple[int, int]
) -> None:
    wanted = pictures(len(TIMES), *size)
    write_clip(tmp_path / name, wanted, timing(), codec=codec)
    found = [frame.pixels for frame in open_clip(tmp_path / name)]
    assert len(found) == len(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.part.mkv").write_bytes(b"half a file")
    write_clip(tmp_path / "a.mkv", pictures(len(TIMES)), timing())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


@pytest.mark.parametrize("base", [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 15360)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.webp", "a.gif"])
def test_uneven_times_are_kept(tmp_path: Path, name: str, base: Fraction) -> None:
    write_clip(tmp_path / name, pictures(len(TIMES)), timing(base))
    clip = open_clip(tmp_path / name)
    frames = list(clip)
    step = {"gif": 0.01, "mp4": float(base), "mov": float(base)}.get(name[2:], 0.001)
    found = [float(frame.time * clip.time_base) for frame in frames]
    shifted = [(time - TIMES[0]) / 1000 + found[0] for time in TIMES]
    assert found == pytest.approx(shifted, abs=step)
    assert float(frames[-1].duration * clip.time_base) == pytest.approx(LAST / 1000, abs=2 * step)
    if name == "a.mp4" and base == Fraction(1, 90000):
        assert [frame.time * clip.time_base / base for frame in frames] == timing(base).times


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.webp", "a.avi", "a.ts"])
def test_colours_survive_lossy_codecs(tmp_path: Path, name: str) -> None:
    wanted = smooth(len(TIMES))
    write_clip(tmp_path / name, wanted, timing())
    found = [frame.pixels for frame in open_clip(tmp_path / name)]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 3


def test_a_gif_keeps_few_colours_to_the_bit(tmp_path: Path) -> None:
    palette = pictures(1, 4, 4)[0].reshape(16, 3)
    rng = np.random.default_rng(1)
    wanted = [palette[rng.integers(0, 16, (11, 13))] for _ in TIMES]
    write_clip(tmp_path / "a.gif", wanted, timing())
    found = [frame.pixels for frame in open_clip(tmp_path / "a.gif")]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path) -> None:
    wanted = smooth(len(TIMES), 47, 63)
    write_clip(tmp_path / "a.mp4", wanted, timing())
    found = next(iter(open_clip(tmp_path / "a.mp4"))).pixels
    assert found.shape == (48, 64, 3)
    padded = np.pad(wanted[0], ((0, 1), (0, 1), (0, 0)), mode="edge")
    assert np.abs(found.astype(int) - padded).mean() < 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.webp"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    made = set()
    for number in range(6):
        rubbish = pictures(3, 50 * number + 1, 90)  # so that memory is not what it was before
        write_clip(tmp_path / name, smooth(len(TIMES)), timing())
        made.add((tmp_path / name).read_bytes())
        del rubbish
    assert len(made) == 1


# Sound


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_the_sound_is_copied_packet_by_packet(tmp_path: Path, recorded: Path, name: str) -> None:
    clip = open_clip(recorded)
    frames = list(clip)
    times = Timing(clip.time_base, [f.time for f in frames], [f.duration for f in frames])
    write_clip(tmp_path / name, (frame.pixels for frame in frames), times, audio=recorded)
    wanted, found = sound(recorded), sound(tmp_path / name)
    assert len(wanted) > 25
    assert [data for _, data in found] == [data for _, data in wanted]
    # Against the picture: mkv cannot begin before zero, and moves both.
    ahead = seconds(tmp_path / name)[0] - seconds(recorded)[0]
    assert [time - ahead for time, _ in found] == pytest.approx([t for t, _ in wanted], abs=0.0011)
    assert [t - ahead for t in seconds(tmp_path / name)] == pytest.approx(
        seconds(recorded), abs=1e-3
    )


def test_the_sound_ends_with_a_preview(tmp_path: Path, recorded: Path) -> None:
    short = Timing(Fraction(1, 1000), TIMES[:4], [40, 80, 10, 370])
    write_clip(tmp_path / "a.mp4", smooth(4), short, audio=recorded, audio_end=short.end)
    found = sound(tmp_path / "a.mp4")
    assert [data for _, data in found] == [data for t, data in sound(recorded) if t < 0.5]


def test_a_container_that_cannot_hold_the_sound_is_refused(tmp_path: Path, recorded: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot hold the sound \(aac\): .*: give another ending"):
        check_output(tmp_path / "a.webm", (48, 64), timing(), recorded)
    check_output(tmp_path / "a.mkv", (48, 64), timing(), recorded)
    assert list(tmp_path.iterdir()) == [recorded]


@pytest.mark.parametrize(
    ("codec", "lost"),
    [
        ("pcm_s16le", [".ts", ".webm"]),  # .ts takes it, and nobody can read it back
        ("flac", [".ts", ".mov"]),
        ("libopus", [".mov"]),  # which says so of its header alone
        ("mp2", [".webm"]),  # in .mp4 it goes by the name of mp3
    ],
)
def test_sound_is_held_where_it_can_be_read_back(
    tmp_path: Path, codec: str, lost: list[str]
) -> None:
    source = record(tmp_path / "recorded.mkv", smooth(len(TIMES)), codec=codec)
    for ending in [".mp4", ".mkv", *lost]:
        path = tmp_path / f"a{ending}"
        if ending in lost:
            name = codec.removeprefix("lib")
            with pytest.raises(ValueError, match=rf"a\{ending}: cannot hold the sound \({name}\)"):
                check_output(path, (48, 64), timing(), source)
            continue
        check_output(path, (48, 64), timing(), source)
        write_clip(path, smooth(len(TIMES)), timing(), audio=source)
        assert [data for _, data in sound(path)] == [data for _, data in sound(source)]


def test_a_second_sound_track_may_begin_late(tmp_path: Path) -> None:
    source = tmp_path / "two.mkv"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        tracks = [out.add_stream("aac", rate=16000) for _ in range(2)]
        for track in tracks:
            track.codec_context.layout = "mono"
        for pixels in smooth(8):
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
        for start in range(0, 50 * 1024, 1024):
            for track in tracks[: 1 + (start >= 30 * 1024)]:
                part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
                part.sample_rate, part.pts = 16000, start
                out.mux(track.encode(part))
        for track in tracks:
            out.mux(track.encode(None))
    for name in ("a.mp4", "a.mov", "a.mkv"):
        check_output(tmp_path / name, (48, 64), timing(), source)


# How frames are turned


def turned(path: Path, *matrix: int) -> Path:
    """A copy of an mp4 whose display matrix is (a, b, c, d) as the QuickTime format defines it."""
    data = bytearray(path.read_bytes())
    same = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    place = data.index(same, data.index(b"tkhd"))
    a, b, c, d = (0x10000 * entry for entry in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    out = path.with_name("turned.mp4")
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)],
)
def test_frames_come_upright(recorded: Path, matrix: tuple[int, int, int, int]) -> None:
    """Pixel (x, y) is shown at (ax + cy, bx + dy), moved so that none is negative."""
    stored = next(iter(open_clip(recorded))).pixels
    shown = next(iter(open_clip(turned(recorded, *matrix)))).pixels
    a, b, c, d = matrix
    y, x = np.mgrid[0 : stored.shape[0], 0 : stored.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    wanted = np.zeros(shown.shape, np.uint8)
    wanted[down - down.min(), across - across.min()] = stored
    assert np.array_equal(shown, wanted)


def test_the_shape_of_pixels_is_kept(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(8), timing(), aspect=Fraction(16, 11))
    assert open_clip(tmp_path / "a.mp4").aspect == Fraction(16, 11)
    assert open_clip(turned(tmp_path / "a.mp4", 0, 1, -1, 0)).aspect == Fraction(11, 16)


# Animations and folders


def test_transparent_animations_are_on_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (6, 4), (255, 0, 0, alpha)) for alpha in (255, 0, 128)]
    for name in ("a.webp", "a.png.apng"):
        kind = "PNG" if name.endswith("apng") else "WEBP"
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"blend": 0}
        frames[0].save(
            tmp_path / name, kind, save_all=True, append_images=frames[1:], duration=[50, 70, 90],
            **options,
        )  # fmt: skip
        found = list(open_clip(tmp_path / name))
        assert [frame.time for frame in found] == [0, 50, 120]
        assert [frame.duration for frame in found] == [50, 70, 90]
        assert [tuple(frame.pixels[1, 1]) for frame in found] == [
            (255, 0, 0), (255, 255, 255), (255, 127, 127)
        ]  # fmt: skip


def test_folders_are_read_in_order_and_in_one_size(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        size = (8, 6) if number < 10 else (16, 12)
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    clip = open_clip(tmp_path, rate=12)
    assert isinstance(clip, FrameFolder)
    assert [(f.time, f.pixels[0, 0, 0], f.pixels.shape) for f in clip] == [
        (0, 1, (6, 8, 3)), (1, 9, (6, 8, 3)), (2, 10, (6, 8, 3))
    ]  # fmt: skip
    assert clip.time_base == Fraction(1, 12)


def test_written_folders_must_be_new(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames", pictures(8), timing())
    assert sorted(p.name for p in (tmp_path / "frames").iterdir())[-1] == "000007.png"
    with pytest.raises(ValueError, match="is a folder with something in it"):
        check_output(tmp_path / "frames", (24, 32), timing())


# What is refused


def cut(path: Path, share: float) -> Path:
    out = path.with_name("cut" + path.suffix)
    data = path.read_bytes()
    out.write_bytes(data[: int(len(data) * share)])
    return out


def read(path: Path) -> int:
    return sum(1 for _ in open_clip(path))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    # The index first, as for streaming: what there is can be read, and it says how much is missing.
    whole = tmp_path / "a.mp4"
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        for pixels in pictures(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    assert read(whole) == 30
    for share in (0.98, 0.6, 0.3, 0.02, 0.0):
        with pytest.raises(ValueError, match=r"cut short|damaged|no video|codec") as refused:
            read(cut(whole, share))
        assert "cut.mp4" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_clip_cut_by_its_edit_list_is_whole(tmp_path: Path) -> None:
    """As phones trim: all frames stay in the file, and its edit list tells which are shown."""
    whole = tmp_path / "a.mp4"
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        stream.codec_context.gop_size, stream.options = 4, {"bf": "0"}
        for level in range(12):
            pixels = np.full((24, 32, 3), 20 * level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    data = whole.read_bytes()
    place = data.index(b"elst") + 12  # behind version, flags and count
    units = struct.unpack(">I", data[(at := data.index(b"mdhd") + 16) : at + 4])[0]
    entry = struct.pack(">Ii", 400, units * 6 // 10)  # 400 ms from the seventh frame on
    trimmed = tmp_path / "trimmed.mp4"
    trimmed.write_bytes(data[:place] + entry + data[place + 8 :])
    shown = [round(frame.pixels.mean() / 20) for frame in open_clip(trimmed)]
    assert shown == [6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"cut short: \d+ of 12 frames"):
        read(cut(trimmed, 0.95))


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_truncated_matroska_is_refused(tmp_path: Path, name: str) -> None:
    steady = Timing(Fraction(1, 1000), [40 * i for i in range(40)], [40] * 40)
    write_clip(tmp_path / name, pictures(40), steady)
    assert read(tmp_path / name) == 40
    for share in (0.9, 0.4):
        with pytest.raises(ValueError, match=r"cut short: ends after [\d.]+ of 1\.60 seconds"):
            read(cut(tmp_path / name, share))


def test_a_last_frame_that_is_held_is_no_cut(tmp_path: Path) -> None:
    held = Timing(Fraction(1, 1000), [40 * i for i in range(20)], [40] * 19 + [2000])
    for name in ("a.mkv", "a.webm", "a.mp4"):
        write_clip(tmp_path / name, pictures(20), held)
        assert read(tmp_path / name) == 20


def test_a_file_without_index_is_refused(recorded: Path) -> None:
    with pytest.raises(ValueError, match="damaged, or no video"):
        read(cut(recorded, 0.7))


def test_files_without_video_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        stream.codec_context.layout = "mono"
        part = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        part.sample_rate = 8000
        out.mux(stream.encode(part))
    with pytest.raises(ValueError, match=r"a\.wav: holds no video stream, only audio"):
        open_clip(tmp_path / "a.wav")
    (tmp_path / "a.mp4").write_text("no video at all")
    with pytest.raises(ValueError, match=r"a\.mp4: damaged, or no video"):
        open_clip(tmp_path / "a.mp4")
    (tmp_path / "a.webp").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.webp: damaged, or no picture"):
        open_clip(tmp_path / "a.webp")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_clip(tmp_path / "b.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        open_clip(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_a_file_without_frames_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        out.start_encoding()
    with pytest.raises(ValueError, match=r"holds no frame|no video") as refused:
        read(path)
    assert str(refused.value).startswith(str(path))


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, pictures(8), timing())
    known, unknown = b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"
    assert known in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(known, unknown))
    with pytest.raises(ValueError, match=r"a\.mkv: its video is in a codec that is not known"):
        open_clip(path)


def test_rates_are_for_folders(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate=12: only for a folder"):
        open_clip(recorded, rate=12)
    with pytest.raises(ValueError, match="rate=0: must be frames a second"):
        open_clip(tmp_path, rate=0)
    assert isinstance(open_clip(recorded), VideoFile)


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from pictures(2)
        raise RuntimeError("no more")

    for name in ("a.mp4", "a.gif", "frames"):
        path = tmp_path / name
        if name != "frames":
            path.write_bytes(b"before")
        with pytest.raises(RuntimeError, match="no more"):
            write_clip(path, broken(), timing())
        assert [each.name for each in tmp_path.iterdir()] == ([name] if path.suffix else [])
        path.unlink(missing_ok=True)


def test_names_of_videos() -> None:
    assert is_video("a.MP4")
    assert not is_video("a.png")
    assert not is_video("folder")


def test_frames_are_let_go_as_they_are_read(tmp_path: Path) -> None:
    """At once, not when the garbage collector comes by: a long clip takes no more than a short."""
    path = tmp_path / "a.mp4"
    frames = [np.full((32, 32, 3), 2 * i, np.uint8) for i in range(100)]
    write_clip(path, frames, Timing(Fraction(1, 25), range(100), [1] * 100))
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in open_clip(path)) == 100
        alive = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2
