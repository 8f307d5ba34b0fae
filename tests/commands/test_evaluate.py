"""Evaluation of a model: the figures counted again from what it leaves, stops, processes."""

from __future__ import annotations

import csv
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio

from edgegen.api import load
from edgegen.commands import _asked, _generation, evaluate
from edgegen.data.emoji import EmojiSet
from edgegen.data.evaluation import evaluation_pictures
from edgegen.data.views import composite
from edgegen.metrics.quality.efflite0 import EffLite0, picture_features
from edgegen.metrics.quality.truths import pipeline_truths
from edgegen.pipelines.layout import channels_last
from edgegen.runs.pictures import read_settings
from edgegen.runs.record import is_finished, read_record
from processes import run_two, start

FEW = "domain.styles=[noto,twemoji]"  # real pictures, whose features take most of the time
TIMES = ("cost/seconds_per_image", "cost/peak_memory_mb")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def typed(tiny_pipeline_folder, emoji_file, cache, tmp_path, monkeypatch):
    """The arguments of an evaluation of six pictures, in batches of four."""
    monkeypatch.chdir(tmp_path)
    return [
        f"model={tiny_pipeline_folder}",
        f"domain.file={emoji_file}",
        "domain.groups=[animals-nature]",
        f"cache={cache}",
        *["steps=2", "truth_steps=3", "batch_size=4", "n=3", "seeds=[0,1]", "guidance=2"],
    ]


@pytest.fixture
def run(typed):
    def run(*more, folder="o"):
        evaluate.main([*typed, f"output_dir={folder}", *more])
        return Path(folder), metrics_in(folder)

    return run


@pytest.fixture
def refused(typed, capsys):
    def run(*more):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([*typed, "output_dir=refused", *more])
        assert stopped.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("evaluate: ")]
        assert not Path("refused").exists()
        return line

    return run


def metrics_in(folder) -> dict:
    return json.loads((Path(folder) / "metrics.json").read_text())


def without_times(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.startswith(TIMES)}


def pixels_in(folder) -> dict[str, np.ndarray]:
    files = sorted((Path(folder) / "images").iterdir())
    return {file.name: np.asarray(Image.open(file)) for file in files}


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# The figures


def test_the_figures_are_those_of_the_plain_definitions(
    run, tiny_pipeline_folder, emoji_file, cache
):
    """Counted again from the PNGs, the truths and the dataset, with numpy, scipy and skimage."""
    folder, metrics = run(
        "metrics.distribution.resamples=3", "metrics.distribution.all_features=false"
    )
    domain = EmojiSet(emoji_file, groups=["animals-nature"], tones=False)
    asked = evaluation_pictures(domain, "train", "dev")
    files = sorted((folder / "images").iterdir())
    settings = [read_settings(file) for file in files]
    prompts = [each["prompt"] for each in settings]
    assert prompts[::2] == prompts[1::2]
    assert prompts[::2] == [
        caption for i in asked if (caption := domain.caption(domain.pictures[i])) in prompts
    ]
    assert [each["seed"] for each in settings] == [0, 1] * 3
    pictures = [np.asarray(Image.open(file)) for file in files]
    pipe = load(str(tiny_pipeline_folder), scheduler="DPMSolverMultistep")
    for net in (pipe.unet, pipe.vae):
        channels_last(net)  # as the command: else last bits differ, and now and then a pixel
    truths = pipeline_truths(
        pipe,
        prompts,
        [(each["seed"], each["index"]) for each in settings],
        guidance=2.0,
        height=16,
        width=16,
        steps=3,
    )
    differences = [
        p.astype(float) / 255 - t.astype(float) / 255 for p, t in zip(pictures, truths, strict=True)
    ]
    rmse = [np.sqrt(np.mean(difference**2)) for difference in differences]
    assert metrics["quality/ode_rmse"] == pytest.approx(np.mean(rmse), abs=1e-7)
    psnr = [peak_signal_noise_ratio(t, p) for p, t in zip(pictures, truths, strict=True)]
    assert metrics["quality/psnr"] == pytest.approx(np.mean(psnr), abs=1e-5)

    features = [picture_features(EffLite0(), x).double().numpy() for x in (pictures, truths)]
    errors = np.sqrt(np.mean((features[0] - features[1]) ** 2, axis=1))
    assert metrics["quality/ode_efflite0"] == pytest.approx(errors.mean(), rel=1e-6)

    white = np.array((255, 255, 255))
    train = [composite(domain.rgba(i), white) for i in domain.indices("train")]
    real = picture_features(EffLite0(), train).double().numpy()
    values, axes = np.linalg.eigh(np.cov(real.T))
    axes = axes[:, np.argsort(-values)[:64]]
    one, two = features[0] @ axes, real @ axes
    first, second = np.cov(one.T), np.cov(two.T)
    root = np.trace(sqrtm(first @ second).real)
    distance = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(first + second) - 2 * root
    assert metrics["quality/fd_pca64_efflite0"] == pytest.approx(distance, rel=1e-3)
    assert metrics["quality/fd_pca64_efflite0_n"] == 6

    # The interval is of prompts: both pictures of one come and go together.
    means = np.array(rmse).reshape(3, 2).mean(1)
    low, high = metrics["quality/ode_rmse_lo"], metrics["quality/ode_rmse_hi"]
    assert means.min() - 1e-9 <= low <= high <= means.max() + 1e-9
    assert metrics["quality/ode_rmse_n"] == 6

    with open(folder / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == prompts
    assert [float(row["quality/ode_rmse"]) for row in rows] == pytest.approx(rmse, abs=1e-7)
    assert 0 <= metrics["quality/concept_accuracy"] <= 1
    assert metrics["quality/concept_accuracy_n"] == metrics["run/prompts"] == 3
    assert metrics["cost/tflops_all"] > 0
    assert metrics["cost/unet_calls"] == 2  # of a batch

    record = read_record(folder)
    assert is_finished(folder)
    assert metrics["quality/lpips"] is None
    assert "give metrics." in record["null_metrics"]["quality/lpips"]
    assert not any(value != value for value in metrics.values())
    assert set(record["judges"]) == {"efflite0", "judge"}


def test_a_new_metric_needs_no_new_pictures(run, clip_folder, monkeypatch):
    folder, first = run("metrics=[psnr]")
    before = {file: file.read_bytes() for file in (folder / "images").iterdir()}
    monkeypatch.setattr(_generation, "sample", None)
    _, second = run("metrics=[text,concept]", f"metrics.text.clip={clip_folder}")
    assert {file: file.read_bytes() for file in (folder / "images").iterdir()} == before
    assert second["cost/tflops_all"] == first["cost/tflops_all"]
    name = "quality/clip_" + clip_folder.name.lower().replace("-", "_").removeprefix("clip_")
    assert name in second
    kinds = {file.name.split("-")[0] for file in (folder / "features").iterdir()}
    assert "efflite0" in kinds
    assert len(kinds) == 2
    # And features that are there need no network.
    monkeypatch.setattr(EffLite0, "forward", None)
    assert without_times(run("metrics=[text,concept]", f"metrics.text.clip={clip_folder}")[1]) == (
        without_times(second)
    )


def test_text_scores_are_cosines_of_the_judge(run):
    from edgegen.metrics.quality.clip import Clip

    folder, metrics = run("metrics=[text]")
    clip = Clip(_asked.JUDGE, name="judge")
    files = sorted((folder / "images").iterdir())
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    prompts = [read_settings(file)["prompt"] for file in files]
    seen = clip.pictures(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    read = clip.captions(prompts)
    expected = 100 * torch.nn.functional.cosine_similarity(seen, read)
    assert metrics["quality/clip_judge"] == pytest.approx(expected.mean().item(), abs=1e-3)


def test_a_method_is_in_the_pictures_and_not_in_the_truth(run, monkeypatch):
    # A clock of 1 reuses nothing: the same pictures, and so the same errors.
    more = ("metrics=[paired]", "steps=4")
    plain, metrics = run(*more, folder="plain")
    one, same = run(*more, "method=[clockwork]", "method.clockwork.clock=1", folder="one")
    four, other = run(*more, "method=[clockwork]", "method.clockwork.clock=4", folder="four")
    assert same["quality/ode_rmse"] == metrics["quality/ode_rmse"] != other["quality/ode_rmse"]
    assert other["cost/tflops_all"] < metrics["cost/tflops_all"]
    first, second = pixels_in(plain), pixels_in(one)
    assert all((first[name] == second[name]).all() for name in first)
    assert read_settings(four / "images/000000.png")["methods"]["clockwork"]["clock"] == 4


def test_prompts_of_ones_own(run, tmp_path):
    Path("prompts.txt").write_text("a fox\n\na tree\n")
    folder, metrics = run("prompts_file=prompts.txt", "n=null", "seeds=[7]", "cache=null")
    assert metrics["run/prompts"] == metrics["run/pictures"] == 2
    reasons = read_record(folder)["null_metrics"]
    assert "captions of the domain alone" in reasons["quality/concept_accuracy"]
    assert "reference=FOLDER" in reasons["quality/kid_efflite0"]
    assert metrics["quality/ode_rmse"] > 0
    assert len(list((folder / "truths").rglob("*.png"))) == 2
    again = run("prompts_file=prompts.txt", "seeds=[7]", f"reference={folder}/images")[1]
    assert again["quality/kid_efflite0"] < 1e-6  # the same pictures


# Stops


def test_a_stopped_run_goes_on_where_it_was(run, monkeypatch):
    more = ("metrics=[paired]",)
    whole, expected = run(*more, folder="whole")
    real, batches = _generation.sample, []

    def dies(pipe, prompts, seeds, **settings):
        batches.append(seeds)
        if len(batches) == 2:
            os.kill(os.getpid(), 15)
        return real(pipe, prompts, seeds, **settings)

    monkeypatch.setattr(_generation, "sample", dies)
    with pytest.raises(SystemExit) as stopped:
        run(*more)
    assert stopped.value.code == 143
    assert read_record("o")["status"] == "killed"
    assert not any(name.startswith("quality/") for name in metrics_in("o"))
    assert len(list(Path("o/images").iterdir())) == 4
    folder, metrics = run(*more)
    assert len(batches) == 3  # the second batch once more, the first never
    assert len({len(batch) for batch in batches}) == 1  # filled up to four
    assert without_times(metrics) == without_times(expected)
    assert (folder / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    first, second = pixels_in(whole), pixels_in(folder)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    # Shorter: what is left over is removed. Other settings: made anew.
    monkeypatch.setattr(_generation, "sample", real)
    assert run(*more, "n=1")[1]["run/pictures"] == 2
    assert len(list((folder / "images").iterdir())) == 2
    before = (folder / "images/000000.png").read_bytes()
    run(*more, "n=1", "steps=3")
    assert (folder / "images/000000.png").read_bytes() != before


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_numbers(run, typed):
    more = ["metrics=[paired,concept]", "n=6", "batch_size=2", "cache=own", FEW]
    with one_thread():
        whole, expected = run(*more, folder="whole")
    for file in Path("own").rglob("*"):  # truths and features are made anew, and killed too
        if file.is_file():
            file.unlink()
    # Killed once so many files of the kind are there.
    for pattern, count in (("own/*/*.png", 3), ("o/images/*.png", 5)):
        process = start("evaluate", *typed, "output_dir=o", *more)
        end = time.monotonic() + 240
        while len(list(Path().glob(pattern))) < count:
            assert process.is_alive(), Path("evaluate.log").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        process.join()
        assert not is_finished("o")
    times = {file: file.stat().st_mtime_ns for file in Path("o/images").glob("0*.png")}
    kept = sorted(times)[:4]  # of finished batches
    with one_thread():
        _, metrics = run(*more)
    assert {file: file.stat().st_mtime_ns for file in kept} == {file: times[file] for file in kept}
    assert without_times(metrics) == without_times(expected)
    assert Path("o/scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(run, typed):
    more = ["metrics=[paired,concept,psnr]", "seeds=[0,1,2]", "batch_size=2", FEW]
    with one_thread():
        one, expected = run(*more, folder="one")
    folder = Path("two")
    run_two("evaluate", *typed, *more, "cache=own", "output_dir=two")
    assert is_finished(folder)
    assert without_times(metrics_in(folder)) == without_times(expected)
    assert (folder / "scores.csv").read_bytes() == (one / "scores.csv").read_bytes()
    first, second = pixels_in(one), pixels_in(folder)
    assert first.keys() == second.keys()
    assert len(first) == 9
    assert all((first[name] == second[name]).all() for name in first)


# Looks and mistakes


@pytest.mark.parametrize(("split", "count"), [("dev", 0), ("test", 1), ("all", 1)])
def test_looks_at_the_test_half_are_listed(run, monkeypatch, split, count):
    looks = []
    monkeypatch.setattr(evaluate, "log_look", looks.append)
    _, metrics = run("metrics=[concept]", f"split={split}", "n=2", "seeds=[3]")
    assert len(looks) == count
    for look in looks:
        assert look["command"] == "evaluate"
        assert (look["split"], look["seeds"], look["captions"]) == (split, "3", 2)
        assert look["concept_accuracy"] == f"{metrics['quality/concept_accuracy']:.4f}"


def test_looks_have_the_columns_of_the_other_command(run, monkeypatch, tmp_path):
    from edgegen.commands import concept_accuracy

    looks = []
    for command in (evaluate, concept_accuracy):
        monkeypatch.setattr(command, "log_look", lambda look: looks.append(list(look)))
    typed = run("metrics=[concept]", "split=test", "n=1", "seeds=[3]", folder="o")[0]
    overrides = (typed / "overrides.txt").read_text().splitlines()
    kept = [x for x in overrides if not x.startswith(("truth_steps", "metrics", "output_dir"))]
    concept_accuracy.main([*kept, "output_dir=other", "shown=0"])
    assert looks[0] == looks[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["split=val"], "split=val: must be one of dev, test, all"),
        (["cells=none"], "cells=none: must be one of train, cells, concepts"),
        (["steps=0"], "steps=0: must be a whole number, 1 or more"),
        (["seeds=[1,1]"], "seeds=[1, 1]: must be different whole numbers"),
        (["seeds=[]"], "seeds=[]"),
        (["n=0"], "n=0: must be a whole number"),
        (["metrics=nice"], "metrics=nice: no such option"),
        (["metrics=[vmaf]"], "metrics=vmaf: cannot judge a model"),
        (["metrics.mine=1"], "metrics"),
        (["+metrics.mine._target_=os.system"], "metrics.mine._target_=os.system: not allowed"),
        (["+metrics.mine._target_=torch.nn.ReLU"], "no score and no torchmetrics Metric"),
        (["metrics.paired.backbone=nowhere"], "nowhere"),
        (["metrics=[text]", "metrics.text.clip=nowhere"], "nowhere"),
        (["reference=nowhere"], "reference=nowhere: no such folder"),
        (["prompts_file=nowhere"], "prompts_file=nowhere: no such file"),
        (["guidance=-1"], "guidance=-1"),
        (["method=[clockwork,deepcache]"], "cannot be combined"),
        (["trainer=fsdp"], "trainer=fsdp: a model is sampled whole: use trainer=ddp"),
    ],
)
def test_mistakes_take_one_line(refused, more, words):
    assert words in refused(*more)


def test_a_damaged_file_of_features_is_made_again(run):
    folder, metrics = run("metrics=[concept]")
    first, *_ = sorted((folder / "features").iterdir())
    content = first.read_bytes()
    with safe_open(first, framework="pt") as file:
        assert first.stem.endswith(file.metadata()["key"][:32])
    first.write_bytes(content[:1000])
    assert without_times(run("metrics=[concept]")[1]) == without_times(metrics)
    assert first.read_bytes() == content
