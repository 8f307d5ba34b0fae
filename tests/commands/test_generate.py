import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image

import edgegen
from edgegen.commands import _generation, _model, generate
from edgegen.commands._prompts import read_prompts
from edgegen.pipelines.load import load
from edgegen.pipelines.schedulers import scheduler_names
from edgegen.reuse import Stage, make_adaptor, save_adaptor
from edgegen.runs.generation import GenerationCost, cost_table
from edgegen.runs.pictures import read_settings
from edgegen.runs.record import is_finished, read_record
from edgegen.sampling.generate import cut_off, noise_generator, noise_seed


@pytest.fixture
def make(tiny_pipeline_folder, tmp_path, monkeypatch):
    """Runs the command on the tiny model in 2 steps; returns the folder."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, folder="o"):
        fixed = [f"model={tiny_pipeline_folder}", "steps=2", f"output_dir={folder}"]
        generate.main([*fixed, *overrides])
        return Path(folder)

    return run


@pytest.fixture
def refused(make, capsys):
    """Runs the command, which must stop with one line and leave no folder; returns the line."""

    def run(*overrides):
        with pytest.raises(SystemExit) as stopped:
            make(*overrides)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.count("\n") == 1, error
        assert not Path("o").exists()
        return error

    return run


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


# The pictures


def test_pictures_are_those_of_plain_diffusers(make, tiny_pipeline_folder):
    folder = make(
        'prompts=["a fox", "an ox"]',
        "scheduler=DPMSolverMultistepScheduler",
        "guidance=3",
        "seed=5",
        "negative_prompt=bad, worse",
    )
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        ["a fox", "an ox"],
        negative_prompt=["bad, worse"] * 2,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(noise_seed(5, index)) for index in range(2)],
    ).images
    for number, image in enumerate(images):
        assert np.array_equal(pixels(folder / f"images/{number:06d}.png"), np.asarray(image))


def test_a_picture_depends_on_seed_and_number_not_on_its_batch(make):
    together = make('prompts=["a","b","c","d","e"]', "batch_size=4", folder="together")
    alone = make('prompts=["a","b","c","d","e"]', "batch_size=1", folder="alone")
    for number in range(5):
        name = f"images/{number:06d}.png"
        assert abs(pixels(together / name) - pixels(alone / name)).max() <= 1
    assert abs(pixels(together / "images/000000.png") - pixels(together / name)).max() > 10


def test_several_pictures_a_prompt_are_those_of_several_seeds(make):
    both = make('prompts=["a","b"]', "num_images=2", "seed=7", "batch_size=1", folder="both")
    for copy, seed in enumerate((7, 8)):
        one = make('prompts=["a","b"]', f"seed={seed}", "batch_size=1", folder=f"one{seed}")
        for index in range(2):
            wanted = pixels(one / f"images/{index:06d}.png")
            assert np.array_equal(pixels(both / f"images/{2 * index + copy:06d}.png"), wanted)


def test_seeds_share_no_noise():
    seeds = {noise_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    first, second = (
        torch.randn(1000, generator=noise_generator(*pair)) for pair in [(0, 1), (1, 0)]
    )
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1
    again = torch.randn(1000, generator=noise_generator(0, 1))
    assert torch.equal(first, again)


def test_a_png_tells_all_that_it_takes_to_make_it_again(make, tiny_pipeline_folder):
    prompt = "a=[b], 'c' ${d}"
    folder = make(f"prompts={prompt}", "seed=4", "guidance=2.5", "scheduler=EulerAncestralDiscrete")
    settings = read_settings(folder / "images/000000.png")
    assert settings["prompt"] == prompt
    pipe = edgegen.load(settings["model"], scheduler=settings["scheduler"])
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        settings["prompt"],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance"],
        height=settings["height"],
        width=settings["width"],
        generator=noise_generator(settings["seed"], settings["index"]),
    ).images[0]
    assert np.array_equal(pixels(folder / "images/000000.png"), np.asarray(image))


def test_the_run_is_recorded(make, tiny_pipeline_folder, capsys):
    folder = make('prompts=["a","b","c"]', "batch_size=2", "height=24", "width=16")
    assert is_finished(folder)
    record = read_record(folder)
    names = {Path(name).relative_to(tiny_pipeline_folder).parts[0] for name in record["files"]}
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= names
    assert record["device"] == "cpu"
    assert record["seeds"] == [0]
    assert pixels(folder / "images/000002.png").shape == (24, 16, 3)
    assert (folder / "grid.png").exists()
    printed = capsys.readouterr().out
    assert "3 pictures" in printed
    assert "conv+linear" in printed


@pytest.mark.parametrize(
    "name", ["DDIM", "LCMScheduler", "KDPM2AncestralDiscrete", "UniPCMultistep"]
)
def test_schedulers_by_name(make, name):
    folder = make("prompts=a", f"scheduler={name}", "steps=3")
    assert read_settings(folder / "images/000000.png")["scheduler"].startswith(name)
    assert metrics_of(folder)["run/images_new"] == 1


# Again


def test_run_again_it_makes_only_what_is_missing(make):
    arguments = ['prompts=["a","b","c","d"]', "batch_size=2"]
    folder = make(*arguments)
    first = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    kept = (folder / "images/000000.png").stat().st_mtime_ns
    (folder / "images/000003.png").unlink()
    (folder / "images/000001.png").write_bytes(first["000001.png"][:100])
    make(*arguments)
    assert {path.name: path.read_bytes() for path in (folder / "images").iterdir()} == first
    assert (folder / "images/000000.png").stat().st_mtime_ns == kept
    assert metrics_of(folder)["run/images_new"] == 2


def test_run_again_when_all_is_there_it_keeps_the_cost(make, monkeypatch):
    folder = make("prompts=a")
    before = metrics_of(folder)
    monkeypatch.setattr(_generation, "sample", None)  # not called
    make("prompts=a")
    assert metrics_of(folder) == before | {"run/images_new": 0}
    (folder / "cost.json").unlink()
    make("prompts=a")
    assert metrics_of(folder)["cost/seconds_per_image"] is None
    assert "cost/seconds_per_image" in read_record(folder)["null_metrics"]


@pytest.mark.parametrize("change", ["seed=1", "guidance=1", "steps=3", "negative_prompt=x"])
def test_other_settings_make_other_pictures(make, change):
    folder = make("prompts=a")
    before = (folder / "images/000000.png").read_bytes()
    make("prompts=a", change)
    assert metrics_of(folder)["run/images_new"] == 1
    assert (folder / "images/000000.png").read_bytes() != before


def test_what_is_left_of_a_longer_run_goes_but_nothing_else(make):
    folder = make('prompts=["a","b","c"]')
    Image.new("RGB", (4, 4)).save(folder / "images/000009.png")  # somebody else's
    make("prompts=a")
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        "000000.png",
        "000009.png",
    ]


# The prompts


def prompts_of(**settings):
    return read_prompts(OmegaConf.create({"prompts": None, "prompts_file": None, **settings}))


def test_a_file_has_a_prompt_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa, b\r\n\n  'c' \u2028 d  \r\n[e]=${f}\n\n".encode())
    assert prompts_of(prompts_file=str(file)) == ["a, b", "'c' \u2028 d", "[e]=${f}"]


def test_the_empty_prompt_is_a_prompt(make):
    folder = make("prompts=", "guidance=1")
    assert read_settings(folder / "images/000000.png")["prompt"] == ""


def test_too_long_a_prompt_is_cut_and_it_says_what(make, capsys):
    # 24 places: start, 22 letters and end.
    long = "abcdefghijklmnopqrstuvwxyz 123"
    folder = make(f'prompts=["short", "{long}"]')
    lines = [line for line in capsys.readouterr().err.splitlines() if "cut" in line]
    assert lines == ["prompt 1 is too long; cut off: 'wxyz 123'"]
    assert read_record(folder)["prompts_cut"] == [{"prompt": 1, "cut": "wxyz 123"}]
    assert metrics_of(folder)["run/prompts_cut"] == 1
    other = make(f'prompts=["short", "{long[:22]}q and others"]', folder="other")
    same = [pixels(each / "images/000001.png") for each in (folder, other)]
    assert np.array_equal(*same)  # what was said to be cut has no say


def test_prompts_of_just_the_right_length_are_not_cut(tiny_pipeline_folder):
    pipe = edgegen.load(tiny_pipeline_folder)
    assert cut_off(pipe, "a" * 22) == ""
    assert cut_off(pipe, "a" * 23) == "a"
    assert cut_off(pipe, "") == ""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "prompts and prompts_file: give one of the two, got neither"),
        (["prompts=a", "prompts_file=b"], "got both"),
        (["prompts=[]"], "the list is empty"),
        (["prompts_file=none.txt"], "prompts_file=none.txt: no such file"),
        (["prompts_file=."], "prompts_file=.: must be a text file"),
        (["prompts=a", "steps=0"], "steps=0: must be a whole number, 1 or more"),
        (["prompts=a", "steps=2.5"], "steps=2.5"),
        (["prompts=a", "steps=1001"], "steps=1001: DDIMScheduler"),
        (["prompts=a", "seed=-1"], "seed=-1"),
        (["prompts=a", "batch_size=0"], "batch_size=0"),
        (["prompts=a", "num_images=x"], "num_images=x"),
        (["prompts=a", "guidance=-1"], "guidance=-1"),
        (["prompts=a", "guidance=much"], "guidance=much"),
        (["prompts=a", "guidance=nan"], "guidance=nan"),
        (["prompts=a", "height=20"], "height=20: must be a multiple of 8"),
        (["prompts=a", "device=abacus"], "abacus"),
        (["prompts=a", "negative_prompt=['a','b']"], "negative_prompt"),
        (["prompts=a", "scheduler=Nope"], "DPMSolverMultistepScheduler"),
        (["prompts=a", "model=/no/such/model"], "/no/such/model"),
        (["prompts=a", "model=taesd"], "model=taesd"),
        (["prompts=\udcff"], "UTF-8"),
    ],
)
def test_bad_settings_take_one_line(refused, overrides, words):
    assert words in refused(*overrides)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b" \n\r\n\n", "holds no prompt"),
        (b"a\xff\xfe", "byte 1 is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "must be a text file"),
        (b"a\0b", "zero bytes"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(refused, tmp_path, content, words):
    (tmp_path / "p").write_bytes(content)
    line = refused("prompts_file=p")
    assert words in line
    assert "prompts_file=p" in line


def test_a_scheduler_that_is_none_is_answered_with_all(refused):
    line = refused("prompts=a", "scheduler=Nope")
    assert all(name in line for name in scheduler_names())


def test_models_that_edit_are_refused(refused, monkeypatch, tiny_pipeline_folder):
    pipe = edgegen.load(tiny_pipeline_folder)

    class Editor(type(pipe)):
        def __call__(self, prompt, image=None):
            raise AssertionError

    pipe.__class__ = Editor
    monkeypatch.setattr(_model, "load", lambda *_, **__: pipe)
    assert "edits pictures; give image=FILE as well" in refused("prompts=a")


def test_ten_thousand_prompts(make, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("".join(f"number {n}\n" for n in range(10_000)))
    image, largest = Image.new("RGB", (8, 8)), 0

    def sample(pipe, prompts, seeds, **settings):
        nonlocal largest
        largest = max(largest, len(prompts))
        return [image] * len(prompts)

    monkeypatch.setattr(_generation, "sample", sample)
    folder = make("prompts_file=p.txt", "batch_size=500", "grid_max=6")
    files = sorted((folder / "images").iterdir())
    assert len(files) == 10_000
    assert largest == 500
    for number in (0, 99, 9_999):
        assert read_settings(files[number])["prompt"] == f"number {number}"
    with Image.open(folder / "grid.png") as sheet:
        assert sheet.width < 1000


# The cost


def test_the_cost_is_that_of_one_picture(tiny_pipeline_folder):
    pipe = edgegen.load(tiny_pipeline_folder)
    pipe.set_progress_bar_config(disable=True)

    def cost_of(steps, batches, guidance=3.0):
        with GenerationCost(pipe) as cost:
            for images in batches:
                with cost.batch(images):
                    pipe(["a"] * images, num_inference_steps=steps, guidance_scale=guidance)
        return {part["name"]: part for part in cost.result()["parts"]}, cost.result()

    once, result = cost_of(2, [1])
    assert sum(part["share"] for part in once.values()) == pytest.approx(1)
    assert result["metrics"]["cost/total_tflops_all"] == pytest.approx(
        2e-3 * sum(part["gmacs_all"] for part in once.values())
    )
    assert not result["warm"]
    more, result = cost_of(4, [3, 2])
    assert (result["warm"], result["images"]) == (True, 2)
    assert result["metrics"]["cost/seconds_per_image_n"] == 1
    assert result["metrics"]["cost/seconds_per_image_iqr"] == 0
    assert more["unet"]["gmacs_all"] == pytest.approx(2 * once["unet"]["gmacs_all"])
    assert more["vae.decoder"] | {"seconds": 0} == pytest.approx(
        once["vae.decoder"] | {"seconds": 0, "share": more["vae.decoder"]["share"]}
    )
    assert (more["unet"]["calls"], more["vae.decoder"]["calls"]) == (4, 1)
    assert all(part["seconds"] > 0 for part in more.values())
    assert (
        sum(part["seconds"] for part in more.values()) < result["metrics"]["cost/seconds_per_image"]
    )
    assert "Not counted" not in cost_table(result)
    assert "odd (3×)" in cost_table(result | {"uncounted": {"odd": 3}}).splitlines()[-1]
    alone, _ = cost_of(2, [1], guidance=1.0)
    assert alone["unet"]["gmacs_all"] == pytest.approx(once["unet"]["gmacs_all"] / 2)
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    with GenerationCost(pipe) as cost:
        pass
    assert cost.result() is None


# Methods


def test_a_method_is_at_work_and_in_the_settings(make):
    plain = make("prompts=a", "steps=4", "scheduler=DDIM", folder="plain")
    reused = make("prompts=a", "steps=4", "scheduler=DDIM", "method=[clockwork]", folder="reused")
    cost = [metrics_of(folder)["cost/tflops_all"] for folder in (plain, reused)]
    assert cost[1] < cost[0]
    pictures = [folder / "images" / "000000.png" for folder in (plain, reused)]
    assert (pixels(pictures[0]) != pixels(pictures[1])).any()
    assert "methods" not in read_settings(pictures[0])
    assert read_settings(pictures[1])["methods"]["clockwork"]["clock"] == 2


def test_another_method_makes_the_pictures_anew(make):
    first = make("prompts=a", "steps=4", "method=[clockwork]")
    before = (first / "images" / "000000.png").read_bytes()
    again = make("prompts=a", "steps=4", "method=[clockwork]", "method.clockwork.clock=4")
    assert metrics_of(again)["run/images_new"] == 1
    assert (again / "images" / "000000.png").read_bytes() != before


def test_a_quantized_folder_is_loaded_as_it_was_saved(tiny_pipeline_folder, tmp_path):
    pipe = edgegen.load(tiny_pipeline_folder)
    edgegen.quantize_(pipe, "w4a16")
    pipe.save_pretrained(tmp_path / "w4")
    again = edgegen.load(tmp_path / "w4")

    def draw(pipe):
        generator = torch.Generator().manual_seed(0)
        return pipe("a", num_inference_steps=2, generator=generator, output_type="pt").images

    assert torch.equal(draw(pipe), draw(again))
    sizes = [
        sum(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))
        for folder in (tiny_pipeline_folder, tmp_path / "w4")
    ]
    assert sizes[1] < sizes[0]
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        load(tmp_path / "w4")  # diffusers' own reading cannot take it for a plain one


def test_a_method_s_file_that_changed_makes_new_pictures(
    make, tiny_pipeline_folder, tmp_path, monkeypatch
):
    """Not the name of an adaptor's file decides what is reused, but what is in it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = edgegen.load(tiny_pipeline_folder).unet
        adaptor = make_adaptor(unet, Stage(), width=8)
    file = tmp_path / "adaptor.safetensors"
    typed = ["prompts=a fox", "method=[clockwork]", f"method.clockwork.predictor={file}"]
    save_adaptor(adaptor, file, unet, Stage())
    (picture,) = (make(*typed) / "images").glob("*.png")
    before = pixels(picture)
    kept = metrics_of(make(*typed))["run/images_new"]
    torch.nn.init.constant_(adaptor.conv_out.bias, 3.0)
    save_adaptor(adaptor, file, unet, Stage())
    folder = make(*typed)
    assert (kept, metrics_of(folder)["run/images_new"]) == (0, 1)
    assert not np.array_equal(pixels(picture), before)
    monkeypatch.setattr(_generation, "code_version", lambda: "another")
    assert metrics_of(make(*typed))["run/images_new"] == 1


def test_a_negative_prompt_that_is_too_long_is_told(make, capsys):
    make("prompts=a fox", "negative_prompt=" + "very " * 60 + "bad")
    assert "negative_prompt is too long; cut off: " in capsys.readouterr().err


def test_what_load_takes_is_an_option_of_the_model(make, refused, monkeypatch):
    assert "bfloat8" in refused("prompts=a fox", "model.dtype=bfloat8")
    seen = {}

    def load(source, **options):
        seen.update(options)
        raise ValueError("x: holds no tokenizer; pass tokenizer=FOLDER")

    monkeypatch.setattr(_model, "load", load)
    line = refused("prompts=a fox", "model.dtype=bfloat16", "model.allow_pickle=true")
    assert "pass model.tokenizer=FOLDER" in line
    assert (seen["dtype"], seen["allow_pickle"]) == ("bfloat16", True)
    assert "vae" not in seen
