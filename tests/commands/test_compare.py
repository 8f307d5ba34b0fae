"""`compare` end to end, on small random models in the shapes of SD 1.5 and of SDXL."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from omegaconf import OmegaConf
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from edgegen.commands import compare, generate
from edgegen.commands._compared import compared
from edgegen.metrics.quality.truths import truth_scheduler
from edgegen.runs import comparison
from edgegen.runs.memory import Memory, peak_memory
from edgegen.runs.record import is_finished, read_record
from edgegen.sampling.generate import noise_generator
from processes import start


@pytest.fixture(scope="module")
def sdxl_folder(tiny_pipeline_folder, tmp_path_factory) -> Path:
    """Two text encoders, sizes as conditions, linear projections: SDXL's layout."""
    parts = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder, safety_checker=None)
    config = parts.text_encoder.config.to_dict() | {"projection_dim": 16}
    torch.manual_seed(1)
    pipe = StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**config)),
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(1, 2, 2),
            norm_num_groups=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading"),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def make(tiny_pipeline_folder, tmp_path, monkeypatch):
    """Runs the command on the tiny model, quickly; returns the folder."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, folder="o", model=tiny_pipeline_folder):
        fast = ["steps=4", "repeats=2", "warmup=0", "memory=false", "truth_steps=6", "cache=c"]
        compare.main([f"model={model}", *fast, f"output_dir={folder}", *overrides])
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
        return np.asarray(image.convert("RGB")) / 255


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


PROMPTS = 'prompts=["a fox", "an ox", "a yak"]'


def check_outputs(folder, labels, prompts=3):
    """One table, in four forms that agree; one sheet with a row a method."""
    assert is_finished(folder)
    metrics = metrics_of(folder)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["method"] for row in rows] == labels
    for row in rows:
        for name, value in row.items():
            if name != "method" and value:
                stem, end = re.fullmatch(r"(.*?)((?:_lo|_hi|_sd|_n)?)", name).groups()
                assert metrics[f"{stem}_{row['method']}{end}"] == float(value)
    table = [line for line in (folder / "table.md").read_text().splitlines() if line[:1] == "|"]
    assert [line.split("|")[1].strip() for line in table] == ["Method", "---", *labels]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == (len(labels) + 1) * prompts
    with Image.open(folder / "grid.png") as sheet:
        assert sheet.width == 8 + prompts * 136
    times = list(csv.DictReader((folder / "times.csv").open()))
    for label in labels:
        own = [float(row["seconds"]) for row in times if row["method"] == label]
        assert len(own) == metrics[f"cost/seconds_per_image_{label}_n"]
        assert np.median(own) == pytest.approx(metrics[f"cost/seconds_per_image_{label}"])
        assert metrics[f"cost/seconds_per_image_iqr_{label}"] >= 0
    for label in labels:
        assert metrics[f"cost/tflops_conv_linear_{label}"] < metrics[f"cost/tflops_all_{label}"]
        assert metrics[f"cost/total_tflops_all_{label}"] > metrics[f"cost/tflops_all_{label}"]
        if label != "none":
            assert metrics[f"cost/tflops_all_{label}"] < metrics["cost/tflops_all_none"]
            assert metrics[f"quality/ode_rmse_vs_none_{label}"] == pytest.approx(
                metrics[f"quality/ode_rmse_{label}"] - metrics["quality/ode_rmse_none"]
            )
    return metrics


# On both layouts


@pytest.mark.slow
def test_sd15(make, monkeypatch, capsys):
    # One process for memory will do: with the row that takes a method there.
    def memory(prepare, load, methods, *rest, **how):
        return (
            peak_memory(prepare, load, methods, *rest, **how) if methods else Memory(2**28, 2**27)
        )

    monkeypatch.setattr(comparison, "peak_memory", memory)
    folder = make(
        PROMPTS,
        "methods=[none,{clockwork4:{clockwork:{clock:4}}}]",
        "repeats=6",
        "memory=true",
    )
    labels = ["none", "clockwork4"]
    metrics = check_outputs(folder, labels)
    assert (folder / "table.md").read_text() in capsys.readouterr().out
    low, high = (metrics[f"cost/time_ratio_clockwork4_{end}"] for end in ("lo", "hi"))
    assert 0 < low <= metrics["cost/time_ratio_clockwork4"] <= high
    for label in labels:
        assert 100 < metrics[f"cost/peak_memory_mb_{label}"] < 4000
        assert 0 <= metrics[f"cost/peak_memory_rise_mb_{label}"] < 400
        assert metrics[f"cost/energy_estimated_j_{label}"] > 0
    record = read_record(folder)
    assert record["settings"]["methods"]["clockwork4"].startswith("clockwork · clock 4 · ")
    assert any("unet" in name for name in record["files"])
    assert metrics["run/prompts"] == 3
    assert metrics["run/threads"] == torch.get_num_threads()


def test_sdxl(make, sdxl_folder):
    folder = make(PROMPTS, "methods=[none,clockwork,deepcache]", model=sdxl_folder)
    metrics = check_outputs(folder, ["none", "clockwork", "deepcache"])
    assert metrics["cost/time_ratio_clockwork_lo"] is None
    assert "six rounds" in read_record(folder)["null_metrics"]["cost/time_ratio_clockwork_lo"]
    assert metrics["cost/tflops_all_deepcache"] < metrics["cost/tflops_all_clockwork"]


def test_times_are_of_a_picture_whatever_the_batch(make):
    folder = make(PROMPTS, "methods=[none,clockwork]", "batch_size=2", "truth=false")
    times = list(csv.DictReader((folder / "times.csv").open()))
    for row in times:
        row["seconds"] = float(row["seconds"]) / 2
    metrics = metrics_of(folder)
    for label in ("none", "clockwork"):
        own = [row["seconds"] for row in times if row["method"] == label]
        assert np.median(own) == pytest.approx(metrics[f"cost/seconds_per_image_{label}"])


# What the figures are


def test_errors_are_to_diffusers_own_many_step_solution(make, tiny_pipeline_folder):
    folder = make(PROMPTS, "guidance=3", "seed=2", "truth_steps=9", "methods=[clockwork]")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder, safety_checker=None)
    pipe.scheduler = truth_scheduler(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    metrics, errors = metrics_of(folder), {"none": [], "clockwork": []}
    for index, prompt in enumerate(("a fox", "an ox", "a yak")):
        truth = pipe(
            prompt, num_inference_steps=9, guidance_scale=3.0, generator=noise_generator(2, index)
        ).images[0]
        truth = np.asarray(truth) / 255
        assert np.array_equal(pixels(folder / f"images/truth/{index:06d}.png"), truth)
        for label, found in errors.items():
            gap = pixels(folder / f"images/{label}/{index:06d}.png") - truth
            found.append((gap**2).mean() ** 0.5)
    for label, found in errors.items():
        assert metrics[f"quality/ode_rmse_{label}"] == pytest.approx(np.mean(found), rel=1e-5)


def test_pictures_are_those_of_generate(make, tiny_pipeline_folder):
    folder = make(PROMPTS, "methods=[none,deepcache]", "method.deepcache.interval=2", "truth=false")
    for label, method in (("none", []), ("deepcache", ["method=[deepcache]"])):
        changed = ["method.deepcache.interval=2"] if method else []
        arguments = [f"model={tiny_pipeline_folder}", PROMPTS, "steps=4", "batch_size=1"]
        generate.main([*arguments, *method, *changed, f"output_dir=g-{label}"])
        for index in range(3):
            name = f"{index:06d}.png"
            wanted = pixels(Path(f"g-{label}") / "images" / name)
            assert np.array_equal(pixels(folder / "images" / label / name), wanted)
        for name in ("cost/tflops_all", "cost/total_tflops_conv_linear"):
            found = metrics_of(folder)[f"{name}_{label}"]
            assert found == pytest.approx(metrics_of(Path(f"g-{label}"))[name])
    assert not any(name.startswith("quality/") for name in metrics_of(folder))


def test_a_model_that_edits_pictures(make, editor_folder):
    """Against diffusers' own call, on a picture of another size; the truth edits the same one."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save("in.png")
    folder = make(
        *('prompts=["make it red", "a fox"]', "image=in.png", "image_guidance=1.2", "guidance=3"),
        *("methods=[none,clockwork]", "memory=false", "scheduler=DDIM"),
        model=editor_folder,
    )
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        editor_folder, safety_checker=None
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    with Image.open("in.png") as image:
        small = image.convert("RGB").resize((16, 16), Image.Resampling.LANCZOS)
    wanted = pipe(
        "a fox",
        image=small,
        num_inference_steps=4,
        guidance_scale=3.0,
        image_guidance_scale=1.2,
        generator=noise_generator(0, 1),
    ).images[0]
    assert np.array_equal(pixels(folder / "images/none/000001.png"), np.asarray(wanted) / 255)
    metrics = metrics_of(folder)
    assert metrics["quality/ode_rmse_clockwork"] > 0
    assert metrics["cost/tflops_all_clockwork"] < metrics["cost/tflops_all_none"]
    record = read_record(folder)
    assert "in.png" in record["files"]
    assert record["settings"]["image_guidance"] == 1.2


def test_a_picture_and_a_model_must_fit(refused, editor_folder, tiny_pipeline_folder):
    Image.new("RGB", (8, 8)).save("in.png")
    Path("no.png").write_text("no picture")
    model, prompts = f"model={editor_folder}", "prompts=a"
    assert "edits pictures; give image=FILE as well" in refused(prompts, model)
    assert "image=x.png: no such file" in refused(prompts, model, "image=x.png")
    assert "image=no.png: damaged, or no picture" in refused(prompts, model, "image=no.png")
    assert "StableDiffusionPipeline edits no pictures" in refused(prompts, "image=in.png")
    assert "image_guidance=x" in refused(prompts, model, "image=in.png", "image_guidance=x")


def test_options_and_rows_of_their_own_are_one_thing(make):
    folder = make(
        "prompts=a",
        "method.clockwork.clock=4",
        "methods=[clockwork,{same:{clockwork:{}}},{other:{clockwork:{clock:{full:[1,2,3]}}}}]",
        "truth=false",
    )
    found = [pixels(folder / f"images/{row}/000000.png") for row in ("clockwork", "same", "other")]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    metrics = metrics_of(folder)
    assert metrics["cost/tflops_all_same"] == metrics["cost/tflops_all_clockwork"]
    assert metrics["cost/tflops_all_other"] > metrics["cost/tflops_all_clockwork"]
    assert read_record(folder)["settings"]["methods"]["none"] == "the plain model"


def test_a_clip_judges_the_text(make, clip_folder):
    folder = make(
        "prompts=thing 3", "methods=[none,clockwork]", f"clip={clip_folder}", "truth=false"
    )
    metrics = metrics_of(folder)
    names = [name for name in metrics if name.startswith("quality/clip")]
    assert {name.rpartition("_")[2] for name in names} >= {"none", "clockwork"}
    assert "Text score" in (folder / "report.html").read_text()


# The rows


METHOD = {
    "clockwork": {"_target_": "edgegen.reuse.clockwork", "_partial_": True, "clock": 2},
    "dict": {"_target_": "builtins.dict", "weights": {"bits": 8, "range": "mse"}, "layers": {}},
}


def rows_of(*methods):
    return compared(OmegaConf.create({"methods": list(methods), "method": METHOD}))


def test_the_plain_model_is_always_among_the_rows():
    assert list(rows_of("clockwork")) == ["none", "clockwork"]
    assert list(rows_of("clockwork", "none")) == ["clockwork", "none"]
    assert rows_of("none")["none"].methods == {}


def test_settings_of_a_row_change_what_they_name_alone():
    rows = rows_of(
        "clockwork",
        {"drift": {"clockwork": {"clock": {"drift": 0.1}}}},
        {"two": {"clockwork": None, "dict": {"weights": {"bits": 4}, "layers": {"a": 1}}}},
        {"other": {"dict": {"weights": {"codebook": 16}}}},
    )
    assert rows["clockwork"].methods["clockwork"].keywords == {"clock": 2}
    assert rows["drift"].methods["clockwork"].keywords == {"clock": {"drift": 0.1}}
    assert rows["two"].methods["dict"] == {
        "weights": {"bits": 4, "range": "mse"},
        "layers": {"a": 1},
    }
    assert rows["other"].methods["dict"]["weights"] == {"codebook": 16}
    assert list(rows["two"].methods) == ["clockwork", "dict"]
    assert rows["two"].text().startswith("clockwork · clock 2 + dict · weights {")


def test_methods_that_exist_but_are_not_at_hand_say_how():
    with pytest.raises(ValueError, match=re.escape("give 'method=[clockwork,dict,deepcache]'")):
        rows_of("deepcache")


# Again, and cut short


def test_run_again_it_keeps_the_pictures(make):
    folder = make(PROMPTS, "methods=[none,clockwork]")
    before = metrics_of(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("images/[nc]*/*.png")}
    again = make(PROMPTS, "methods=[none,clockwork]")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = metrics_of(again)
    assert (before["run/images_new"], after["run/images_new"]) == (6, 0)
    same = [name for name in before if re.match(r"quality/|cost/\w*(flops|energy)", name)]
    assert len(same) > 20
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_run_cut_short_looks_unfinished(make, monkeypatch):
    folder = make("prompts=a", "methods=[none]")
    assert (folder / "report.html").is_file()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure_time", interrupt)
    with pytest.raises(SystemExit):
        make("prompts=a", "methods=[none]")
    assert read_record(folder)["status"] == "killed"
    left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert left <= {"config.yaml", "overrides.txt", "run.json", "images", "metrics.json"}
    monkeypatch.undo()


@pytest.mark.slow
def test_a_killed_process_leaves_no_finished_run(tiny_pipeline_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, said = Path("o"), Path("compare.log")
    arguments = [f"model={tiny_pipeline_folder}", "prompts=a", "repeats=100000", "truth=false"]
    process = start("compare", *arguments, "output_dir=o")
    while not said.exists() or "timing" not in said.read_text():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert read_record(folder)["status"] == "running"
    assert not is_finished(folder)
    assert not (folder / "report.html").exists()


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "prompts and prompts_file: give one of the two"),
        (["prompts=a", "methods=[none,clockwrk]"], "'clockwrk' (did you mean 'clockwork'?)"),
        (["prompts=a", "methods=[x]"], "allowed: none, clockwork, deepcache, faster_diffusion"),
        (["prompts=a", "methods=[]"], "methods=[]: give at least one"),
        (["prompts=a", "methods=[none,none]"], "two rows are named none"),
        (["prompts=a", "methods=[3]"], "3 is neither the name of a method"),
        (["prompts=a", "methods=[{a:{clockwork:{}},b:{clockwork:{}}}]"], "neither the name"),
        (["prompts=a", "methods=[{x:{clockwork:{clok:3}}}]"], "no option 'clok'; allowed: clock,"),
        (["prompts=a", "methods=[{x:{clockwork:3}}]"], "x: clockwork takes {OPTION: VALUE}"),
        (["prompts=a", "methods=[{x:clockwork}]"], "x: give its methods"),
        (["prompts=a", "methods=[{X/y:{clockwork:{}}}]"], "'X/y' is no name for a row"),
        (["prompts=a", "methods=[{truth:{clockwork:{}}}]"], "truth is taken"),
        (["prompts=a", "methods=[{clockwork:{clockwork:{clock:3}}}]"], "clockwork is taken"),
        (["prompts=a", "methods=[{x:{clockwork:{clock:0}}}]"], "methods: x: "),
        (["prompts=a", "method.clockwork.stage=9"], "methods: clockwork: "),
        (["prompts=a", "methods=[{x:{clockwork:{},deepcache:{}}}]"], "cannot be combined"),
        (["prompts=a", "method.clockwork.clok=3"], "clok'"),
        (["prompts=a", "repeats=0"], "repeats=0: must be a whole number, 1 or more"),
        (["prompts=a", "warmup=-1"], "warmup=-1: must be a whole number, 0 or more"),
        (["prompts=a", "truth_steps=1001"], "truth_steps=1001: must be at most 1000"),
        (["prompts=a", "memory=maybe"], "memory=maybe: must be true or false"),
        (["prompts=a", "clip=/no/such/clip"], "/no/such/clip"),
        (["prompts=a", "clip=."], "preprocessor_config.json"),
        (["prompts=a", "steps=0"], "steps=0"),
        (["prompts=a", "model=/no/such/model"], "/no/such/model"),
    ],
)
def test_bad_settings_take_one_line(refused, overrides, words):
    assert words in refused(*overrides)
