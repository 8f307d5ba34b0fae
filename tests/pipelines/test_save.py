from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from edgegen import assets
from edgegen.pipelines.load import load
from edgegen.pipelines.save import replaced_folder, save_embedded

PLAIN = """
import sys
import diffusers, numpy, torch, transformers
cls = getattr(diffusers, sys.argv[2])  # importing a pipeline speaks of torchvision
print("imported", file=sys.stderr)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
pipe = cls.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
picture = pipe("a fox", num_inference_steps=2, height=16, width=16, output_type="np",
               generator=torch.Generator().manual_seed(0)).images
assert "edgegen" not in sys.modules
numpy.save(sys.argv[3], picture)
"""


def test_plain_diffusers_reads_it_without_a_word_and_draws_the_same(
    tmp_path: Path, pipelines: dict[str, DiffusionPipeline]
) -> None:
    folder = save_embedded(pipelines["sd1"], tmp_path / "model")
    pipe = load(folder)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, folder, type(pipe).__name__, tmp_path / "picture.npy"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.partition("imported\n")[2] == ""
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        "a fox",
        num_inference_steps=2,
        height=16,
        width=16,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    np.testing.assert_array_equal(np.load(tmp_path / "picture.npy"), picture)


def test_content_of_the_folder(tmp_path: Path, pipelines: dict[str, DiffusionPipeline]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("card")
    (folder / "grid.png").write_bytes(b"picture")
    (folder / "old.safetensors").write_bytes(b"old")
    source = pipelines["sd1"]
    before = {key: value.clone() for key, value in source.unet.state_dict().items()}
    assert save_embedded(source, folder) == folder

    assert (folder / "README.md").read_text() == "card"
    assert (folder / "grid.png").exists()
    assert not (folder / "old.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for path in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    # The names that every version of transformers reads.
    names = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    for path in folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert "_name_or_path" not in path.read_text()
    assert source.unet.dtype == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in source.unet.state_dict().items())

    listed = assets.verify(folder)
    assert "README.md" not in listed
    assert "unet/diffusion_pytorch_model.safetensors" in listed
    if sys.platform == "linux":
        check = ["sha256sum", "-c", "--quiet", assets.SUMS]
        assert subprocess.run(check, cwd=folder, check=False).returncode == 0


def test_flags_of_the_pipeline_are_kept(
    tmp_path: Path, pipelines: dict[str, DiffusionPipeline], folders: dict[str, Path]
) -> None:
    pipe = load(folders["sdxl"])
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    saved = load(save_embedded(pipe, tmp_path / "model"))
    assert type(saved) is type(pipe)
    assert saved.config.force_zeros_for_empty_prompt is False
    assert saved.tokenizer_2.pad_token == "!"
    assert pipelines["sdxl"].config.force_zeros_for_empty_prompt is True


def test_tokenizer_reads_the_same_from_each_of_its_forms(
    tmp_path: Path, pipelines: dict[str, DiffusionPipeline]
) -> None:
    folder = save_embedded(pipelines["sd1"], tmp_path / "model") / "tokenizer"
    assert "is_local" not in json.loads((folder / "tokenizer_config.json").read_text())
    one = CLIPTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    other = CLIPTokenizer.from_pretrained(folder)  # from vocab.json and merges.txt
    source = pipelines["sd1"].tokenizer
    texts = ["A red Apple, noto style", "ein Fuß, 火 🦊!! (x) [y]", "", "isn't  it\n?", "x" * 200]
    for text in texts:
        settings = {"padding": "max_length", "truncation": True}
        expected = source(text, **settings).input_ids
        assert len(expected) == 77
        assert one(text, **settings).input_ids == expected
        assert other(text, **settings).input_ids == expected
        # Nothing is unknown: unknown would end the text.
        assert source(text).input_ids.count(source.eos_token_id) == 1


def test_weights_beyond_float16_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    pipe = load(folders["sd1"])
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"unet\.conv_in\.bias does not fit float16"):
        save_embedded(pipe, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_broken_off_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    (folder / "README.md").write_text("card")

    def half() -> None:
        with replaced_folder(folder) as new:
            (new / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert (folder / "weights").read_text() == "old"
    with replaced_folder(folder) as new:
        (new / "other").write_text("new")
    assert {path.name for path in folder.iterdir()} == {"other", "README.md"}
    assert list(tmp_path.iterdir()) == [folder]
