import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from PIL import Image

from edgegen.commands import _generation, concept_accuracy, model_card
from edgegen.commands._domain import read_domain
from edgegen.data.emoji import STYLES, EmojiSet, write_emoji_file
from edgegen.data.evaluation import evaluation_pictures
from edgegen.data.latents import LatentData
from edgegen.data.views import composite
from edgegen.runs.pictures import read_settings
from edgegen.runs.record import is_finished, read_record

NAME = "quality/concept_accuracy"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def looks(monkeypatch):
    """Looks at the test half, kept here instead of in the project."""
    seen = []
    monkeypatch.setattr(concept_accuracy, "log_look", seen.append)
    return seen


@pytest.fixture
def run(tiny_pipeline_folder, emoji_file, cache, looks, tmp_path, monkeypatch):
    """Runs the command on the tiny model, on 20 concepts; returns the folder and the metrics."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, folder="o"):
        fixed = [
            f"model={tiny_pipeline_folder}",
            f"domain.file={emoji_file}",
            "domain.groups=[animals-nature]",
            f"cache={cache}",
            f"output_dir={folder}",
            *["steps=2", "split=dev", "resamples=50", "shown=4", "guidance=2"],
        ]
        concept_accuracy.main([*fixed, *overrides])
        return Path(folder), json.loads((Path(folder) / "metrics.json").read_text())

    return run


@pytest.fixture
def domain(emoji_file) -> EmojiSet:
    return EmojiSet(emoji_file, groups=["animals-nature"], tones=False)


def drawer(domain: EmojiSet, shift: int = 0):
    """In place of the sampler: the real picture of a caption, or of one `shift` concepts on."""
    concepts = sorted({picture.concept for picture in domain.pictures})
    places = {(p.concept, p.style): i for i, p in enumerate(domain.pictures)}
    pictures = {}
    for picture in domain.pictures:
        shown = concepts[(concepts.index(picture.concept) + shift) % len(concepts)]
        rgba = domain.rgba(places[shown, picture.style])
        image = Image.fromarray(composite(rgba, np.array((255, 255, 255))))
        pictures[domain.caption(picture)] = image

    def sample(pipe, prompts, seeds, **settings):
        return [pictures[prompt] for prompt in prompts]

    return sample


# What it writes


def test_it_judges_the_pictures_of_a_model(run, domain, looks, capsys):
    folder, metrics = run("n=6", "seeds=[3,5]", "batch_size=4")
    files = sorted((folder / "images/guidance-2").iterdir())
    assert len(files) == 12
    settings = [read_settings(file) for file in files]
    asked = [
        domain.caption(domain.pictures[i]) for i in evaluation_pictures(domain, "train", "dev")
    ]
    assert [each["prompt"] for each in settings[::2]] == asked[:6]
    assert [each["seed"] for each in settings] == [3, 5] * 6
    assert len({each["index"] for each in settings}) == 6
    assert metrics[f"{NAME}_n"] == metrics["run/captions"] == 6
    assert metrics["run/captions_unanswerable"] == 0
    for key in ("", "_lo", "_hi", "_real", "_real_lo", "_real_hi"):
        assert 0 <= metrics[NAME + key] <= 1
    assert 0 <= metrics["quality/copy_rate_lo"] <= metrics["quality/copy_rate_hi"] <= 1
    assert sum(metrics.get(f"{NAME}_{s.replace('-', '_')}_n", 0) for s in STYLES) == 6
    with Image.open(folder / "results.png") as sheet:
        assert sheet.width > 4 * 256
    record = read_record(folder)
    assert is_finished(folder)
    assert record["seeds"] == [3, 5]
    assert any(name.endswith("efficientnet-lite0-57934424.pth") for name in record["files"])
    assert "6 captions (train, dev), pictures of each: 2" in capsys.readouterr().out
    assert looks == []


def test_a_second_run_makes_only_what_is_missing(run, monkeypatch):
    folder, metrics = run("n=4", "seeds=[0,1]", "batch_size=4")
    files = sorted((folder / "images/guidance-2").iterdir())
    before = [file.read_bytes() for file in files]
    files[5].unlink()
    files[6].write_bytes(before[6][:100])
    batches = []
    real = _generation.sample

    def spy(pipe, prompts, seeds, **settings):
        batches.append(seeds)
        return real(pipe, prompts, seeds, **settings)

    monkeypatch.setattr(_generation, "sample", spy)
    assert run("n=4", "seeds=[0,1]", "batch_size=4")[1] == metrics
    assert [file.read_bytes() for file in files] == before
    assert len(batches) == 1  # the second batch of the two, whole
    assert len(batches[0]) == 4
    monkeypatch.setattr(_generation, "sample", None)
    assert run("n=4", "seeds=[0,1]", "batch_size=4")[1] == metrics
    with pytest.raises(TypeError):  # other settings: the pictures are not taken for these
        run("n=4", "seeds=[0,1]", "batch_size=4", "steps=3")


def test_noise_depends_on_the_caption_and_the_seed_alone(run):
    small, _ = run("n=2", "seeds=[1]", "batch_size=1", folder="small")
    large, _ = run("n=3", "seeds=[0,1]", "batch_size=1", folder="large")
    found = {}
    for folder in (small, large):
        for file in (folder / "images/guidance-2").iterdir():
            settings = read_settings(file)
            with Image.open(file) as image:
                found.setdefault((settings["prompt"], settings["seed"]), []).append(image.tobytes())
    twice = [pictures for pictures in found.values() if len(pictures) == 2]
    assert len(twice) == 2
    assert all(first == second for first, second in twice)
    assert len({pictures[0] for pictures in found.values()}) == len(found) == 6


# What the figures say


def test_a_perfect_copier_reaches_what_real_pictures_reach_and_is_found_out(
    run, domain, monkeypatch
):
    monkeypatch.setattr(_generation, "sample", drawer(domain))
    _, metrics = run("n=null", "seeds=[0]", "nearest=20")
    assert metrics[NAME] == metrics[f"{NAME}_real"] > 0.1
    assert metrics[f"{NAME}_relative"] == metrics[f"{NAME}_relative_lo"] == 1
    assert metrics["quality/copy_rate"] == 1
    assert metrics["quality/copy_rate_real"] < 1


def test_real_accuracy_is_that_of_the_plain_definition(run, domain, monkeypatch):
    """Counted again, picture by picture, from the dataset and the network alone."""
    from edgegen.metrics.quality.efflite0 import EffLite0, picture_features

    white = np.array((255, 255, 255))
    pixels = [composite(domain.rgba(i), white) for i in range(len(domain))]
    features = picture_features(EffLite0(), pixels).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    def family(style):
        return "fluent" if style in ("fluent", "fluent-flat", "fluent-3d") else style

    right, asked = 0, evaluation_pictures(domain, "cells")
    for index in asked:
        own = domain.pictures[index]
        order = np.argsort(-features @ features[index], kind="stable")
        allowed = [
            domain.pictures[i]
            for i in order
            if (domain.pictures[i].concept, family(domain.pictures[i].style))
            != (own.concept, family(own.style))
        ]
        right += any(picture.concept == own.concept for picture in allowed[:20])
    monkeypatch.setattr(_generation, "sample", drawer(domain))
    _, metrics = run("cells=cells", "split=all", "n=null", "seeds=[0]", "nearest=20")
    assert metrics[f"{NAME}_n"] == len(asked) > 0
    assert metrics[f"{NAME}_real"] == pytest.approx(right / len(asked))


def test_a_model_that_draws_something_else_is_wrong(emoji_file, run, tmp_path, monkeypatch):
    """Concepts that look alike in all styles: the right one is always found, another never."""
    concepts = [
        {"hexcode": f"2F{n:03X}", "label": f"k{n}", "tags": [], "group": "animals-nature"}
        | {"subgroup": "x"}
        for n in range(8)
    ]
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(8):
        coarse = rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)
        coarse[..., 3] = 255
        rgba = coarse.repeat(16, 0).repeat(16, 1)
        for step, style in enumerate(STYLES):
            own = rgba.copy()
            own[:2, : 8 + step, :3] = 30 * step
            pictures.append((number, 0, style, own))
    # A ninth is drawn in one style alone: nothing could answer when it is asked for.
    concepts.append({**concepts[0], "hexcode": "2FFFF", "label": "lone"})
    pictures.append((8, 0, "noto", pictures[0][3][::-1].copy()))
    path = tmp_path / "alike.npz"
    write_emoji_file(path, concepts, pictures)
    domain = EmojiSet(path, tones=False)
    given = [f"domain.file={path}", "split=all", "n=null", "seeds=[0,1]"]
    monkeypatch.setattr(_generation, "sample", drawer(EmojiSet(path, limit=8, tones=False)))
    _, right = run(*given, folder="right")
    monkeypatch.setattr(_generation, "sample", drawer(EmojiSet(path, limit=8, tones=False), 1))
    _, wrong = run(*given, "nearest=3", folder="wrong")
    assert right[NAME] == right[f"{NAME}_real"] == 1
    assert wrong[f"{NAME}_real"] > 0.9
    assert wrong[NAME] == wrong[f"{NAME}_relative"] == 0
    asked = domain.indices("train")
    lone = sum(domain.pictures[i].concept == 8 for i in asked)
    assert lone == right["run/captions_unanswerable"] == 1
    assert right["run/captions"] == len(asked) - 1


# Guidance and halves


def test_several_guidances_are_compared_on_dev(run, domain, looks, monkeypatch, capsys):
    copier = drawer(domain)
    other = drawer(domain, 1)

    def sample(pipe, prompts, seeds, guidance, **settings):
        draw = copier if guidance == 3 else other
        return draw(pipe, prompts, seeds)

    monkeypatch.setattr(_generation, "sample", sample)
    folder, metrics = run("n=30", "seeds=[0]", "guidance=[1.5,3]", "nearest=20")
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        "guidance-1.5",
        "guidance-3",
    ]
    assert metrics["run/guidance"] == 3
    assert metrics[f"{NAME}_guidance_3"] == metrics[NAME] > metrics[f"{NAME}_guidance_1.5"]
    assert metrics["quality/copy_rate_guidance_3"] == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "best guidance: 3"
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["guidance", "1.5", "3"]
    assert looks == []


def test_a_look_at_the_test_half_is_listed(run, looks, tiny_pipeline_folder):
    _, metrics = run("n=2", "seeds=[0]", "split=test")
    assert len(looks) == 1
    assert looks[0]["model"] == tiny_pipeline_folder.name  # a name, not a path of this machine
    assert looks[0]["concept_accuracy"] == f"{metrics[NAME]:.4f}"
    assert (looks[0]["split"], looks[0]["cells"], looks[0]["captions"]) == ("test", "train", 2)
    run("n=2", "seeds=[0]", "split=test", "log_looks=false")
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("split=both", "split=both: must be one of dev, test, all"),
        ("cells=rows", "cells=rows: must be one of train, cells, concepts"),
        ("n=0", "n=0: must be a whole number, 1 or more"),
        ("nearest=0", "nearest=0: must be"),
        ("seeds=[]", "seeds=[]: must be different whole numbers"),
        ("seeds=[1,1]", "seeds=[1, 1]: must be different whole numbers"),
        ("seeds=-1", "seeds=-1: must be"),
        ("guidance=[]", "guidance=[]: the list is empty"),
        ("guidance=[1,x]", "guidance=x: must be a number"),
        ("domain.groups=[animals]", "unknown group 'animals'; allowed: animals-nature,"),
        ("domain.styles=[oil]", "unknown style 'oil'; allowed: noto,"),
        ("domain.styles=[fluent,fluent-3d]", "no caption of the domain can be asked"),
        ("domain.file=none.npz", "domain.file=none.npz: no such file"),
        ("domain.limit=0", "domain.limit=0: must be"),
        ("domain=oil", "allowed: all, emoji"),
    ],
)
def test_settings_that_are_refused(run, capsys, override, said):
    with pytest.raises(SystemExit) as stopped:
        run(override)
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert said in line
    assert line.startswith("concept_accuracy: error: ")
    assert not Path("o").exists()


def test_several_guidances_are_refused_on_test(run, capsys):
    with pytest.raises(SystemExit):
        run("split=test", "guidance=[1,2]")
    assert "several are compared on split=dev alone" in capsys.readouterr().err
    assert not Path("o").exists()


# The domain, and the sheets of a model card


def test_the_domain_is_that_of_the_training():
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        trained = compose("train", ["experiment=emoji/unet_second"]).data
        domains = [compose(name).domain for name in ("concept_accuracy", "model_card")]
    defaults = inspect.signature(LatentData).parameters
    wanted = {
        key: trained[key] if key in trained else defaults[key].default
        for key in ("groups", "styles", "tones", "limit")
    }
    for domain in domains:
        assert list(domain.groups) == list(wanted["groups"])
        assert list(domain.styles or STYLES) == list(wanted["styles"])
        assert domain.limit == wanted["limit"]
    assert wanted["tones"] is False  # as in `read_domain`


def test_the_wide_domain_reads_the_whole_dataset():
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        wide = compose("concept_accuracy", ["domain=all"])
    emoji = read_domain(wide)
    assert {"people-body", "objects"} < {emoji.concepts[p.concept].group for p in emoji.pictures}


def test_the_sheets_show_the_first_captions(
    tiny_pipeline_folder, emoji_file, domain, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    fixed = [
        f"model={tiny_pipeline_folder}",
        f"domain.file={emoji_file}",
        "domain.groups=[animals-nature]",
        *["steps=2", "guidance=2", "output_dir=o"],
        *["sheets.train=9", "sheets.cells=3", "sheets.concepts=2"],
    ]
    model_card.main(fixed)
    prompts = [read_settings(file)["prompt"] for file in sorted(Path("o/images").iterdir())]
    wanted = [
        domain.caption(domain.pictures[index])
        for split, count in (("train", 9), ("cells", 3), ("concepts", 2))
        for index in evaluation_pictures(domain, split)[:count]
    ]
    assert prompts == wanted
    sizes = []
    for name in ("training.png", "held_out_cells.png", "held_out_concepts.png"):
        with Image.open(Path("o") / name) as sheet:
            sizes.append(sheet.size)
    assert [width // 128 for width, _ in sizes] == [8, 3, 2]
    assert sizes[0][1] > 2 * 128
    assert "9 pictures: o/training.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sheets.train=-1"], "sheets.train=-1: must be a whole number, 0 or more"),
        (["sheets.train=0", "sheets.cells=0", "sheets.concepts=0"], "no captions"),
        (["steps=0"], "steps=0: must be"),
    ],
)
def test_sheets_that_are_refused(
    tiny_pipeline_folder, emoji_file, tmp_path, monkeypatch, capsys, overrides, said
):
    monkeypatch.chdir(tmp_path)
    fixed = [
        f"model={tiny_pipeline_folder}",
        f"domain.file={emoji_file}",
        "domain.groups=[animals-nature]",
        "output_dir=o",
    ]
    with pytest.raises(SystemExit):
        model_card.main([*fixed, *overrides])
    assert said in capsys.readouterr().err
    assert not Path("o").exists()
