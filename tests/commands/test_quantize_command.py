from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import edgegen
from edgegen.commands._methods import method_configs
from edgegen.commands.generate import main as generate
from edgegen.commands.quantize import main
from edgegen.pipelines.recommended import read_sampling, write_sampling
from edgegen.quantization import is_quantized
from edgegen.quantization.modules import Quantized

CALIBRATION = "calibration={prompts: [a fox], steps: 2}"


@pytest.fixture(scope="module")
def run(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet in 4 bits, the autoencoder in 8."""
    folder = tmp_path_factory.mktemp("quantize")
    main(
        [
            f"model.source={tiny_pipeline_folder}",
            "method=[w4a8,w8a8]",
            f"method.w4a8.{CALIBRATION}",
            f"method.w8a8.{CALIBRATION}",
            "method.w8a8.parts=[vae]",
            f"output_dir={folder}",
        ]
    )
    return folder


def pictures(model: Path, folder: Path, *more: str) -> np.ndarray:
    generate([f"model.source={model}", "prompts=a dog", "steps=3", f"output_dir={folder}", *more])
    return np.asarray(Image.open(folder / "images/000000.png"))


def test_what_is_saved_draws_as_the_methods_do(
    run: Path, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    saved = pictures(run / "model", tmp_path / "saved")
    methods = [
        "method=[w4a8,w8a8]",
        f"method.w4a8.{CALIBRATION}",
        f"method.w8a8.{CALIBRATION}",
        "method.w8a8.parts=[vae]",
    ]
    simulated = pictures(tiny_pipeline_folder, tmp_path / "simulated", *methods)
    plain = pictures(tiny_pipeline_folder, tmp_path / "plain")
    np.testing.assert_array_equal(saved, simulated)
    assert (saved != plain).any()


def test_what_is_told(run: Path) -> None:
    told = json.loads((run / "quantized.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    paths = {name: [row["path"] for row in each["quantized"]] for name, each in told.items()}
    assert all(path.startswith("unet.") for path in paths["w4a8"])
    assert all(path.startswith("vae.") for path in paths["w8a8"])
    assert metrics["run/layers"] == len(paths["w4a8"] + paths["w8a8"])
    assert 4 * metrics["cost/layers_stored_mb"] < 1.5 * metrics["cost/layers_plain_mb"]
    pipe = edgegen.load(run / "model")
    assert is_quantized(run / "model/unet")
    assert is_quantized(run / "model/vae")
    assert isinstance(pipe.unet.conv_in, Quantized)
    assert isinstance(pipe.vae.decoder.conv_in, Quantized)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["method=[]"], "method=[]: say how to quantize"),
        (["method=[clockwork]"], "method=clockwork: does not quantize"),
        (["method.w8a8.include=[none.*]"], "none.*"),
        (["method.w8a8.weights.bits=9"], "9"),
    ],
)
def test_what_is_refused(
    typed: list[str], said: str, tiny_pipeline_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([f"model.source={tiny_pipeline_folder}", *typed, f"output_dir={tmp_path / 'run'}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run/model").exists()


def test_an_editor_is_calibrated_on_pictures(editor_folder: Path, tmp_path: Path) -> None:
    """On those of `calibration.images`; where a picture is edited, on that one."""
    editor_folder = shutil.copytree(editor_folder, tmp_path / "editor")
    write_sampling(editor_folder, {"steps": 3, "image_guidance": 1.25})
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    edit = [f"model.source={editor_folder}", "method=[w8a8]", f"method.w8a8.{CALIBRATION}"]
    runs = "{prompts: [a fox], steps: 2, images: [%s]}" % (tmp_path / "red.png")
    own = [*edit[:2], f"method.w8a8.calibration={runs}"]
    main([*own, f"output_dir={tmp_path / 'quantized'}"])
    image = f"image={tmp_path / 'red.png'}"
    drawn = [
        pictures(model, tmp_path / name, image, "guidance=3", *more)
        for name, model, *more in (
            ("saved", tmp_path / "quantized" / "model"),
            ("simulated", editor_folder, *edit[1:]),
            ("plain", editor_folder),
        )
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert "red.png" not in (tmp_path / "quantized/model/unet/config.json").read_text()
    assert read_sampling(tmp_path / "quantized/model") == {"steps": 3, "image_guidance": 1.25}


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [(5, None, 5.0), (None, 2.5, 2.5), (5, 2.5, 5.0), (None, None, None), (True, None, None)],
)
def test_calibration_is_at_the_guidance_of_pictures(
    given: object, own: object, expected: float | None
) -> None:
    runs = {"prompts": ["a fox"], "guidance": None}
    methods = {
        "w8a8": {"_target_": "a", "calibration": dict(runs)},
        "w4a8": {"_target_": "a", "calibration": {**runs, "guidance": 1.5}},
        "clockwork": {"_target_": "b"},
    }
    cfg = OmegaConf.create({"guidance": given, "model": {"guidance": own}, "method": methods})
    found = method_configs(cfg)
    assert found["w8a8"].calibration.guidance == expected
    assert found["w4a8"].calibration.guidance == 1.5  # as it says itself
