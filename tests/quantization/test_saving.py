"""Quantized models in folders: written by diffusers, read back bit for bit, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from quantization_models import draw, make_text_pipe
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from edgegen.quantization import (
    attach_steps,
    is_quantized,
    load_quantized,
    quantize_,
    quantized,
    record_calls,
)

CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SPEC: dict[str, Any] = {
    "spec": "w4a8",
    "weights": {"symmetric": False, "granularity": "group", "group": 20},
    "attention": 8,
    "time_groups": 2,
    "bias_correction": True,
    "parts": list(CLASSES),
    "layers": {"*.attn1.*": {"weights": {"bits": 3}}, "*.attn2.*": {"activations": {"bits": None}}},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, int]:
    """A folder, what its pipeline drew, and the bytes that its report tells."""
    pipe = make_text_pipe(tmp_path_factory.mktemp("letters"))
    with record_calls(pipe, CLASSES) as recorder:
        draw(pipe, 4, output_type="pt")
    report = quantize_(pipe, calls=recorder.calls, **SPEC)
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder, draw(pipe, output_type="pt"), report.stored_bytes


@pytest.fixture
def folder(saved: tuple[Path, torch.Tensor, int], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


def test_loads_bit_for_bit_without_calibration(
    saved: tuple[Path, torch.Tensor, int], tmp_path: Path
) -> None:
    folder, expected, _ = saved
    pipe = make_text_pipe(tmp_path)
    state = torch.get_rng_state()
    for name, cls in CLASSES.items():
        assert is_quantized(folder / name)
        setattr(pipe, name, load_quantized(cls, folder / name))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="within a run only"):
        draw(pipe)
    attach_steps(pipe)
    assert torch.equal(draw(pipe, output_type="pt"), expected)
    pipe.save_pretrained(tmp_path / "again")
    for path in sorted(folder.rglob("*.safetensors")):
        again = load_file(tmp_path / "again" / path.relative_to(folder))
        first = load_file(path)
        assert again.keys() == first.keys()
        assert all(torch.equal(again[key], first[key]) for key in first)


def test_file_is_as_small_as_told(saved: tuple[Path, torch.Tensor, int]) -> None:
    folder, _, told = saved
    tensors = [
        (name, tensor)
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    ]
    integers = [tensor for name, tensor in tensors if name.endswith(".integers")]
    assert all(tensor.dtype == torch.uint8 for tensor in integers)
    names = {name.rpartition(".stored.")[0] for name, _ in tensors if ".stored." in name}
    layers = sum(
        tensor.nbytes
        for name, tensor in tensors
        if any(name.startswith(f"{layer}.") for layer in names)
    )
    assert layers == told


def test_plain_folders_are_not_quantized(tmp_path: Path) -> None:
    pipe = make_text_pipe(tmp_path)
    with quantized(pipe, "w8a8", activations={"dynamic": True}):
        pipe.save_pretrained(tmp_path / "model")  # a simulation: the plain weights
    assert not is_quantized(tmp_path / "model" / "unet")
    assert not is_quantized(tmp_path / "nothing")
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet")
    assert torch.equal(plain.conv_in.weight, pipe.unet.conv_in.weight)
    with pytest.raises(ValueError, match="no edgegen_quantization of format 1"):
        load_quantized(UNet2DConditionModel, tmp_path / "model" / "unet")


def test_half_precision(saved: tuple[Path, torch.Tensor, int]) -> None:
    unet = load_quantized(UNet2DConditionModel, saved[0] / "unet", torch.bfloat16)
    assert unet.dtype == torch.bfloat16
    assert unet.conv_in.stored.scale.dtype == torch.float32
    assert unet.conv_in.weight.dtype == torch.bfloat16


def refused(folder: Path, text: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=text) as caught:
        load_quantized(UNet2DConditionModel, folder / "unet")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(folder, "truncated")
    (folder / WEIGHTS).unlink()
    refused(folder, "no weights", FileNotFoundError)
    (folder / "unet" / "config.json").unlink()
    refused(folder, "no such file", FileNotFoundError)


def test_mismatched_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "conv_in.stored.integers"
    for change, text in (
        ({name: tensors[name][:-1].clone()}, f"{name}: 288 integers of 8 bits take 288 bytes"),
        ({name: None}, f"1 tensors are missing, first {name}"),
        ({"other": torch.zeros(1)}, "1 tensors are too many, first other"),
        ({"conv_in.stored.scale": torch.zeros(3)}, "size mismatch for conv_in.stored.scale"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(changed, folder / WEIGHTS)
        refused(folder, text)


def test_mismatched_configuration(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    content = json.loads(path.read_text())
    told = content["edgegen_quantization"]
    for changes, text in (
        ({"format": 2}, "of format 1"),
        ({"layers": {**told["layers"], "conv_x": told["layers"]["conv_in"]}}, "conv_x"),
        ({"layers": {**told["layers"], "mid_block": told["layers"]["conv_in"]}}, "mid_block is a"),
        ({"layers": {"conv_in": {}}}, "weights"),
    ):
        path.write_text(json.dumps({**content, "edgegen_quantization": {**told, **changes}}))
        refused(folder, text)
    path.write_text("{")
    refused(folder, "not valid JSON")
