"""Pictures drawn anew, by the command, on a tiny model."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from edgegen.commands.plug_and_play import main
from edgegen.runs.pictures import read_settings
from edgegen.runs.record import read_record


@pytest.fixture
def model(tiny_pipeline_folder, tmp_path):
    """The tiny pipeline with attention at the second decoder block."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    torch.manual_seed(1)
    pipe.unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


SMALL = ["steps=2", "inversion_steps=4"]


def test_a_users_picture(model, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "fox.png")
    output = tmp_path / "out"
    given = [f"model={model}", f"picture={tmp_path / 'fox.png'}", "prompt=a fox, red", *SMALL]
    main([*given, "batch_size=1", f"output_dir={output}"])
    (made,) = (output / "images").glob("*.png")
    assert Image.open(made).size == (24, 16)
    assert read_settings(made)["prompt"] == "a fox, red"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["cost/unet_calls"] == 4 + 2
    assert metrics["cost/seconds_per_image"] > 0
    assert metrics["quality/source_rmse"] > 0
    assert (output / "grid.png").is_file()
    # Run again, nothing is made; with a method it is another picture.
    before = made.read_bytes()
    main([*given, "batch_size=1", f"output_dir={output}"])
    assert made.read_bytes() == before
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["cost/tflops_all"] is None
    assert "were there" in read_record(output)["null_metrics"]["cost/tflops_all"]
    main([*given, "batch_size=1", "method=[clockwork]", f"output_dir={output}"])
    assert made.read_bytes() != before


def test_drawings_of_the_domain(model, emoji_file, tmp_path):
    output = tmp_path / "out"
    domain = [f"domain.file={emoji_file}", "domain.groups=null"]
    main([f"model={model}", *domain, "n=3", "batch_size=2", *SMALL, f"output_dir={output}"])
    files = sorted((output / "images").glob("*.png"))
    assert len(files) == 3
    for file in files:
        settings = read_settings(file)
        old, new = (settings[key].rpartition(", ")[0] for key in ("caption", "prompt"))
        assert old == new
        assert settings["caption"] != settings["prompt"]
    # A picture does not depend on the others, nor on where its batch ends.
    other = tmp_path / "other"
    main([f"model={model}", *domain, "n=1", "batch_size=2", *SMALL, f"output_dir={other}"])
    first = np.asarray(Image.open(other / "images" / files[0].name))
    assert np.abs(first.astype(int) - np.asarray(Image.open(files[0]))).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt=a"], "prompt, caption: are for picture=FILE"),
        (["picture=fox.png"], "picture: give prompt="),
        (["picture=none.png", "prompt=a"], "none.png"),
        (["n=0"], "n=0: must be a whole number"),
        (["n=1", "steps=3", "inversion_steps=4"], "the first must divide the second"),
    ],
)
def test_one_line_for_a_mistake(model, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main([f"model={model}", *arguments, f"output_dir={tmp_path / 'out'}"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert words in line
    assert not (tmp_path / "out").exists()
