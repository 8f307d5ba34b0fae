"""Evaluation of a user's own pictures and videos."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from edgegen.commands import evaluate
from edgegen.metrics.quality.efflite0 import EffLite0, picture_features
from edgegen.metrics.quality.pictures import as_floats
from edgegen.metrics.quality.text import load_clip
from edgegen.runs.record import is_finished, read_record


def drawn(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Smooth colours: (count, size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(count, size, size, 3)), (0, 4, 4, 0))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return (255 * (smooth - low) / (high - low)).astype(np.uint8)


def save(folder: str, pictures: np.ndarray, name: str = "{}.png") -> list[Path]:
    Path(folder).mkdir()
    files = [Path(folder, name.format(number)) for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    return files


def save_video(path: str, frames: np.ndarray) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*typed, folder="o"):
        evaluate.main([f"output_dir={folder}", "cache=cache", *typed])
        return json.loads((Path(folder) / "metrics.json").read_text())

    return run


@pytest.fixture
def refused(run, capsys):
    def refused(*typed):
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(*typed)
        assert stopped.value.code == 2
        assert sorted(Path().rglob("*")) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


# Folders


def test_pairs_are_compared_by_name(run):
    mine, theirs = drawn(12, 0), drawn(12, 1)
    save("mine", mine)
    save("theirs", theirs, "{:03}.png")  # 10 comes after 9 in both
    metrics = run("images=mine", "reference=theirs", "metrics=pairs")
    pairs = list(zip(theirs, mine, strict=True))
    psnr = [peak_signal_noise_ratio(a, b) for a, b in pairs]
    assert metrics["quality/psnr"] == pytest.approx(np.mean(psnr), abs=1e-5)
    ssim = [
        structural_similarity(
            *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for pair in pairs
    ]
    assert metrics["quality/ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)
    rmse = [np.sqrt(np.mean((a / 255.0 - b / 255.0) ** 2)) for a, b in pairs]
    assert metrics["quality/paired_rmse"] == pytest.approx(np.mean(rmse), abs=1e-6)
    seen = [picture_features(EffLite0(), side).double() for side in (mine, theirs)]
    errors = (seen[0] - seen[1]).square().mean(1).sqrt()
    assert metrics["quality/paired_efflite0"] == pytest.approx(errors.mean().item(), rel=1e-6)
    assert metrics["quality/psnr_n"] == metrics["run/pictures"] == 12
    assert metrics["quality/lpips"] is None
    assert is_finished("o")
    record = read_record("o")
    assert record["seeds"] is None  # no model drew them
    assert not [key for key in record["inputs"] if key.startswith("model.")]


def test_one_pair_has_no_interval(run):
    save("mine", drawn(1, 0))
    save("theirs", drawn(1, 1))
    metrics = run("images=mine", "reference=theirs", "metrics=[psnr]")
    assert metrics["quality/psnr_n"] == 1
    assert not [name for name in metrics if name.endswith(("_lo", "_hi", "_sd"))]


def test_pictures_of_other_names_are_no_pairs(refused):
    save("mine", drawn(3, 0))
    save("theirs", drawn(4, 1))
    sorted(Path("theirs").iterdir())[1].unlink()
    line = refused("images=mine", "reference=theirs", "metrics=pairs")
    assert "1.png and 2.png stand side by side: pairs need the same names" in line


def test_sets_of_other_counts_and_sizes_are_compared_as_sets(run, capsys):
    save("mine", drawn(5, 0))
    save("theirs", drawn(8, 1, size=48))
    Image.fromarray(drawn(1, 2, size=20)[0]).save("theirs/odd.png")
    Path("theirs/.hidden.png").write_text("none")
    Path("theirs/notes.txt").write_text("none")
    metrics = run("images=mine", "reference=theirs", "metrics.distribution.resamples=3")
    seen = picture_features(EffLite0(), drawn(5, 0)).double().numpy()
    real = np.concatenate(
        [picture_features(EffLite0(), x) for x in (drawn(8, 1, size=48), drawn(1, 2, size=20))]
    ).astype(np.float64)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(
        (kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1))
        for x in (seen, real)
    )
    expected = within - 2 * kernel(seen, real).mean()
    assert metrics["quality/kid_efflite0"] == pytest.approx(expected, rel=1e-5)
    reasons = read_record("o")["null_metrics"]
    for name in ("psnr", "ssim", "flip", "paired_rmse"):
        assert metrics[f"quality/{name}"] is None
        assert "images has 5 pictures and reference 9" in reasons[f"quality/{name}"]
    assert "64 principal axes need more" in reasons["quality/fd_pca64_efflite0"]
    assert "prompts_file=FILE" in reasons["quality/clip_score"]
    assert "images has 5 pictures" in capsys.readouterr().out


def test_prompts_of_given_pictures(run, clip_folder):
    save("mine", drawn(2, 0))
    Path("prompts.txt").write_text("thing 1\nthing 2\n")
    typed = ("images=mine", "prompts_file=prompts.txt", "metrics=[text]")
    metrics = run(*typed, f"metrics.text.clip={clip_folder}", "metrics.text.name=mine")
    assert -100 <= metrics["quality/clip_mine"] <= 100
    assert metrics["quality/clip_mine_n"] == 2


def test_features_of_a_reference_are_kept_and_never_stale(run, monkeypatch):
    save("mine", drawn(4, 0))
    files = save("theirs", drawn(6, 1))
    typed = ("images=mine", "reference=theirs", "metrics=[distribution]")
    typed += ("metrics.distribution.resamples=3", "metrics.distribution.all_features=false")
    metrics = run(*typed)
    assert len(list(Path("cache/features").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(EffLite0, "forward", None)  # nothing is computed again
        assert run(*typed) == metrics
    Image.fromarray(drawn(1, 9)[0]).save(files[3])  # the same name, another picture
    changed = run(*typed)
    assert changed["quality/kid_efflite0"] != metrics["quality/kid_efflite0"]
    assert changed == run(*typed, "cache=null", folder="new")


def test_faults_of_folders_take_one_line(refused):
    mine = save("mine", drawn(4, 0))
    save("theirs", drawn(3, 1))
    save("large", drawn(4, 1, size=40))
    Path("empty").mkdir()
    typed = "images=mine"
    line = refused(typed, "reference=theirs", "metrics=pairs")
    assert "images has 4 pictures and reference 3: pairs need as many" in line
    line = refused(typed, "reference=large", "metrics=[psnr]")
    assert "0.png has 32 × 32 pixels and its pair 0.png 40 × 40" in line
    assert "reference=empty: holds no picture" in refused(typed, "reference=empty")
    assert "images=nowhere: no such folder" in refused("images=nowhere", "reference=theirs")
    assert "give reference=FOLDER" in refused(typed)
    assert "images=: give a folder" in refused("images=", "reference=theirs")
    assert "give metrics.lpips.weights=FILE" in refused(typed, "reference=large", "metrics=[lpips]")
    assert "metrics=vmaf: cannot judge pictures" in refused(
        typed, "reference=large", "metrics=[vmaf]"
    )
    Path("few.txt").write_text("one\n")
    assert "1 prompts for 4 pictures" in refused(typed, "prompts_file=few.txt")
    assert "two videos or two folders" in refused("images=a.mp4", "reference=mine")
    mine[2].write_bytes(mine[2].read_bytes()[:200])
    line = refused(typed, "reference=large")
    assert "images=mine/2.png: damaged, or no picture" in line
    mine[2].write_text("no picture")
    assert "mine/2.png: damaged, or no picture" in refused(typed, "reference=large")


# Videos


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A drawing that moves by 2 pixels a frame, and the same with noise: 6 frames both."""
    monkeypatch.chdir(tmp_path)
    wide = drawn(1, 0, size=96)[0]
    source = np.stack([wide[10:74, 2 * t : 64 + 2 * t] for t in range(6)])
    noise = np.random.default_rng(0).integers(-12, 13, source.shape)
    edited = np.clip(source.astype(int) + noise, 0, 255).astype(np.uint8)
    save_video("source.mp4", source)
    save_video("edited.mp4", edited)
    return source, edited


def test_videos_are_compared_frame_by_frame_and_over_time(run, clips):
    source, edited = clips
    metrics = run("images=edited.mp4", "reference=source.mp4")
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(source, edited, strict=True)]
    assert metrics["quality/psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert metrics["quality/psnr_n"] == 6
    assert "quality/psnr_lo" not in metrics  # frames of one video are no sample
    steps = np.abs(np.diff(edited.astype(float), axis=0)) / 255
    assert metrics["video/flicker"] == pytest.approx(1 - steps.mean(), abs=1e-6)
    seen = picture_features(EffLite0(), edited).double()
    seen = (seen / seen.norm(dim=1, keepdim=True)).numpy()
    near = [
        (max(0, seen[t] @ seen[t - 1]) + max(0, seen[t] @ seen[0])) / 2 for t in range(1, len(seen))
    ]
    name = "video/subject_consistency_efflite0"
    assert metrics[name] == pytest.approx(np.mean(near), abs=1e-6)
    # The source moves to the left: warped so, only the noise is left of the difference.
    noise = edited.astype(float) - source
    moved = np.abs(noise[1:, :, :-2] - noise[:-1, :, 2:]).mean() / 255
    assert metrics["video/warp_error"] == pytest.approx(moved, rel=0.15)
    assert metrics["quality/vmaf"] < 100
    # A copy of the source is perfect.
    same = run("images=source.mp4", "reference=source.mp4", "metrics=[psnr,temporal]")
    assert same["quality/psnr"] == 100
    assert same["video/warp_error"] < metrics["video/warp_error"]


def test_a_clip_judges_videos_too(run, clips, clip_folder):
    clip = f"metrics.temporal.clip={clip_folder}"
    metrics = run("images=edited.mp4", "metrics=[temporal]", clip)
    (name,) = [name for name in metrics if name.startswith("video/tem_con")]
    assert -1 <= metrics[name] <= 1
    assert metrics["video/warp_error"] is None
    reasons = read_record("o")["null_metrics"]
    assert "reference=VIDEO" in reasons["video/warp_error"]
    assert any("no captions" in reason for reason in reasons.values())
    Path("captions.txt").write_text("thing 1\nthing 2\n")
    metrics = run("images=edited.mp4", "metrics=[temporal]", clip, "prompts_file=captions.txt")
    (name,) = [name for name in metrics if name.startswith("video/frame_acc")]
    frames = load_clip(clip_folder).pictures(as_floats(clips[1]))
    texts = load_clip(clip_folder).captions(["thing 1", "thing 2"])
    nearer = (frames @ texts.T).argmax(1) == 1
    assert metrics[name] == pytest.approx(nearer.float().mean().item())


def test_faults_of_videos_take_one_line(refused, clips):
    source, _ = clips
    Path("one.txt").write_text("a fox\n")
    assert "prompts_file=one.txt: 1 captions; a video takes two" in refused(
        "images=source.mp4", "prompts_file=one.txt"
    )
    save_video("short.mp4", source[:4])
    save_video("small.mp4", source[:, :32, :32])
    assert "images has 4 frames and reference 6" in refused(
        "images=short.mp4", "reference=source.mp4"
    )
    assert "frames of 32 × 32 pixels and reference of 64 × 64" in refused(
        "images=small.mp4", "reference=source.mp4"
    )
    Path("none.mp4").write_bytes(b"no video at all")
    assert "images=none.mp4: damaged, or no video" in refused(
        "images=none.mp4", "reference=source.mp4"
    )
    assert "no such file" in refused("images=away.mp4", "reference=source.mp4")
    assert "metrics=concept: cannot judge videos" in refused(
        "images=source.mp4", "reference=source.mp4", "metrics=[concept]"
    )
