from pathlib import Path

import numpy as np
import pytest

from edgegen.media.video import is_video, read_frames

av = pytest.importorskip("av", reason="needs the extra `photos`")


def write(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_frames_come_back(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    write(tmp_path / "x.mp4", frames)
    found = list(read_frames(tmp_path / "x.mp4"))
    assert np.array_equal(np.stack(found), frames)


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.mp4: damaged, or no video"):
        list(read_frames(tmp_path / "x.mp4"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_frames(tmp_path / "y.mp4"))


def test_a_cut_file_is_no_shorter_video(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    write(tmp_path / "x.mp4", frames)
    content = (tmp_path / "x.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        list(read_frames(tmp_path / "cut.mp4"))


def test_names_of_videos() -> None:
    assert is_video("a.MP4")
    assert not is_video("a.png")
    assert not is_video("folder")
