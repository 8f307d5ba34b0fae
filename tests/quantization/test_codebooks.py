"""Codebook weights: which codebook is whose, what it all takes, and what is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from quantization_models import draw, make_unet, unet_inputs
from safetensors.torch import load_file, save_file

from edgegen.cost import count
from edgegen.quantization import load_quantized, quantize_, quantized
from edgegen.quantization.codebooks import CodebookWeight, Layout, layout_of
from edgegen.quantization.gptvq import quantize_vectors

SPEC: dict[str, Any] = {
    "spec": "vq2d",
    "weights": {"vector": 2, "codebook_bits": 0.5, "rounding": "nearest"},
    "layers": {"*.attn1.*": {"weights": {"block": 16}}, "*.attn2.*": {"weights": {"vector": 1}}},
}


@pytest.mark.parametrize(("dimension", "group"), [(1, 256), (2, 2048), (4, 65536)])
def test_published_group_sizes(dimension: int, group: int) -> None:
    """2.125 bits a value (arXiv 2402.15319, table 1), and a byte for each codebook's scale."""
    layout = layout_of((1024, 1024), 2, dimension, 0.125)
    assert layout.group == group
    assert layout.codebooks == 1024 * 1024 // group
    bits = 2 + layout.entries * dimension * 8 / group
    assert bits == 2.125
    assert CodebookWeight.empty((1024, 1024), layout).bits == bits + 8 / group + 64 / 1024**2


@pytest.mark.parametrize("shape", [(64, 64), (128, 128, 3, 3), (64, 192, 3, 3), (320, 320, 3, 3)])
@pytest.mark.parametrize("dimension", [1, 2, 4])
@pytest.mark.parametrize("block", [None, 32])
def test_codebooks_take_what_was_asked(shape: Any, dimension: int, block: int | None) -> None:
    layout = layout_of(shape, 2, dimension, 0.125, block)
    groups = layout.groups()
    assert groups.shape == (layout.rows, layout.vectors)
    values = groups.flatten().bincount() * layout.dimension
    assert len(values) == layout.codebooks
    assert values.min() > 0
    own = layout.codebooks * layout.entries * layout.dimension * 8 / torch.Size(shape).numel()
    assert 0.0625 < own <= 0.126  # a whole number of codebooks
    scales = 0 if block is None else 4 / block
    bits = CodebookWeight.empty(shape, layout).bits
    assert bits == pytest.approx(2 + own + scales, abs=0.1)


def test_small_layers_get_smaller_vectors() -> None:
    assert layout_of((128, 512), 2, 4, 0.125).dimension == 4
    assert layout_of((128, 511), 2, 4, 0.125).dimension == 2
    assert layout_of((64, 64), 2, 4, 0.125).dimension == 2
    assert layout_of((40, 50), 2, 4, 0.125).dimension == 1


@pytest.mark.parametrize("block", [None, 16])
def test_values_are_looked_up(block: int | None) -> None:
    """Value by value, written out; 33 columns, so that the last pairs hang over."""
    layout = Layout(12, 33, 2, 3, 100, block)
    generator = torch.Generator().manual_seed(0)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    indices = whole(8, 12, 17)
    codebooks = whole(255, layout.codebooks, 8, 2) - 127
    codes, spread = (None, None)
    if block is not None:
        codes, spread = whole(16, 12, 3), torch.tensor([-3.0, 0.25])
    exponents, step = whole(256, layout.codebooks), torch.tensor([-4.0, 2**-6])
    shape = (12, 11, 3, 1)
    weight = CodebookWeight(shape, layout, indices, codebooks, exponents, step, codes, spread)
    groups = layout.groups()
    expected = torch.empty(12, 33)
    for row in range(12):
        for column in range(33):
            vector = column // 2
            group = groups[row, vector]
            entry = codebooks[group, indices[row, vector]]
            expected[row, column] = 2.0 ** (-4 + exponents[group] / 64) * entry[column % 2]
            if codes is not None:
                expected[row, column] *= 2.0 ** (-3 + 0.25 * codes[row, column // 16])
    torch.testing.assert_close(weight(), expected.view(12, 11, 3, 1))
    assert weight(torch.bfloat16).dtype == torch.bfloat16


def test_loads_bit_for_bit(pipe: Any, tmp_path: Path) -> None:
    report = quantize_(pipe, **SPEC)
    expected = draw(pipe)
    pipe.unet.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    names = {name.rpartition(".stored.")[0] for name in tensors if ".stored." in name}
    kept = sum(
        tensor.nbytes
        for name, tensor in tensors.items()
        if any(name.startswith(f"{layer}.") for layer in names)
    )
    assert kept == report.stored_bytes
    assert any(name.endswith("stored.block_scales") for name in tensors)
    pipe.unet = load_quantized(UNet2DConditionModel, tmp_path)
    assert torch.equal(draw(pipe), expected)
    half = load_quantized(UNet2DConditionModel, tmp_path, torch.bfloat16)
    assert half.mid_block.resnets[0].conv1.stored.scale_range.dtype == torch.float32
    name = "mid_block.resnets.0.conv1.stored.indices"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=f"{name}: 1152 integers of 4 bits take 576 bytes"):
        load_quantized(UNet2DConditionModel, tmp_path)


@pytest.mark.parametrize("for_good", [False, True])
def test_cost(pipe: Any, for_good: bool) -> None:
    """BOPs by effective bits, stored bytes with codebooks; the same without weights at all."""
    plain = count(pipe.unet, *unet_inputs())
    layers = dict(pipe.unet.named_modules())
    if for_good:
        report = quantize_(pipe, **SPEC)
        cost = count(pipe.unet, *unet_inputs())
    else:
        with quantized(pipe, **SPEC) as report:
            cost = count(pipe.unet, *unet_inputs())
    norms = sum(
        p.nbytes for m in layers.values() if "Norm" in type(m).__name__ for p in m.parameters()
    )
    assert cost.stored_bytes == report.stored_bytes + norms
    bops = 1024 * plain.total.attention
    for row in report.rows:
        layer: Any = layers[row.path.removeprefix("unet.")]
        stored = row.stored_bytes - (0 if layer.bias is None else layer.bias.nbytes)
        bits = 8 if row.weights.startswith("8 bits") else 8 * stored / row.values
        macs = plain.modules[row.path.removeprefix("unet.")].macs_conv_linear
        bops += 32 * macs * bits
    assert cost.bops == pytest.approx(bops, rel=1e-6)
    assert cost.macs_all == plain.macs_all
    with torch.device("meta"):
        unet = make_unet()
        inputs = [t.to("meta") for t in unet_inputs()]
    with quantized(unet, **SPEC):
        bare = count(unet, *inputs)
    assert (bare.bops, bare.stored_bytes) == (cost.bops, cost.stored_bytes)


def test_first_and_last_layers_are_integers(pipe: Any, calls: Any) -> None:
    parts = ["unet.conv_*", "unet.mid_block.resnets.0.*"]
    with quantized(pipe, "vq2d", calls=calls, include=parts) as report:
        kinds = {row.path: row.weights for row in report.rows}
        out = draw(pipe)
    assert kinds["unet.conv_in"].startswith("8 bits")
    assert "codebooks of" in kinds["unet.mid_block.resnets.0.conv1"]
    assert out.isfinite().all()


def test_compiled_and_exported() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 40)
    stored = quantize_vectors(weight, layout_of((16, 40), 2, 2, 0.5, 16))
    exported = torch.export.export(stored, ()).module()
    assert torch.equal(exported(), stored())
