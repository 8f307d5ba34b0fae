"""Networks that learn while they are quantized: what moves, what it costs, what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from quantization_models import make_unet, unet_inputs

from edgegen.quantization import Call, load_quantized, parse_spec, quantize_
from edgegen.quantization.modules import Quantized
from edgegen.quantization.qat import Learned, Learning, fuse_, learn_

WEIGHTS: dict[str, Any] = {"weights": {"bits": 4, "range": "mse"}, "activations": {"bits": None}}
BOTH: dict[str, Any] = {**WEIGHTS, "activations": {"bits": 8}}
WAYS = ("lsq", "lrqat", "peqa")


def learning_unet(
    way: str, spec: dict[str, Any] = WEIGHTS, calls: list[Call] | None = None, **options: Any
) -> tuple[Any, Learned]:
    unet = make_unet()
    torch.manual_seed(0)
    settings: dict[str, Any] = {"rank": 2, **options}
    return unet, learn_(unet, parse_spec(**spec), Learning(way, **settings), calls)


def loss_of(unet: Any) -> torch.Tensor:
    return unet(*unet_inputs()).sample.square().mean()


def train(unet: Any, learned: Learned, steps: int = 3, lr: float = 0.03) -> None:
    groups = [{"params": learned.weights, "lr": lr}, {"params": learned.scales, "lr": 1e-3}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(unet).backward()
        optimizer.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", [WEIGHTS, BOTH], ids=["weights", "both"])
def test_begins_as_rounding_to_nearest(way: str, spec: dict[str, Any], calls: list[Call]) -> None:
    nearest = make_unet()
    quantize_(nearest, parse_spec(**spec), calls=calls)
    unet, _ = learning_unet(way, spec, calls, base="float32")
    with torch.no_grad():
        assert torch.equal(unet(*unet_inputs()).sample, nearest(*unet_inputs()).sample)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_trained(way: str) -> None:
    unet, learned = learning_unet(way)
    plain = make_unet()
    twins = {name: each for name, each in unet.named_modules() if isinstance(each, Quantized)}
    layers = {name: plain.get_submodule(name).weight for name in twins}
    assert len(twins) > 20
    own = {id(p) for p in [*learned.weights, *learned.scales]}
    assert own == {id(p) for p in unet.parameters() if p.requires_grad}
    assert sum(p.numel() for p in learned.scales) == sum(len(each) for each in layers.values())
    expected = {
        "lsq": sum(p.numel() for p in plain.parameters()),
        "lrqat": sum(
            min(2, *each.flatten(1).shape) * (len(each) + each[0].numel())
            for each in layers.values()
        ),
        "peqa": 0,
    }[way]
    assert sum(p.numel() for p in learned.weights) == expected
    if way != "lsq":  # the weights in full precision are gone
        held = sum(t.nbytes for t in [*unet.parameters(), *unet.buffers()])
        saved = sum(3 * each.numel() for each in layers.values())
        # A scale is a share of the first one, which is kept.
        trained = 4 * (expected + 2 * sum(len(each) for each in layers.values()))
        assert held == sum(p.nbytes for p in plain.parameters()) - saved + trained


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", [WEIGHTS, BOTH], ids=["weights", "both"])
def test_trained_fused_saved_and_loaded_to_the_bit(
    way: str, spec: dict[str, Any], calls: list[Call], tmp_path: Path
) -> None:
    unet, learned = learning_unet(way, spec, calls)
    before = loss_of(unet)
    start = [p.detach().clone() for p in [*learned.weights, *learned.scales]]
    train(unet, learned)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(start, [*learned.weights, *learned.scales], strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    assert loss_of(unet) < before
    with torch.no_grad():
        expected = unet(*unet_inputs()).sample
        fuse_(unet, parse_spec(**spec))
        assert torch.equal(unet(*unet_inputs()).sample, expected)
        unet.save_pretrained(tmp_path / "unet")
        loaded = load_quantized(UNet2DConditionModel, tmp_path / "unet")
        assert torch.equal(loaded(*unet_inputs()).sample, expected)
    assert not any(p.requires_grad for p in unet.parameters())
    assert loaded.mid_block.resnets[0].conv1.stored.bits == 4
    assert loaded.conv_in.stored.bits == 8
    told = sum(each.stored_bytes for each in loaded.modules() if isinstance(each, Quantized))
    assert told == learned.report.stored_bytes


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_change_nothing_but_what_is_kept(way: str, calls: list[Call]) -> None:
    gradients, kept = [], []
    for checkpoint in (False, True):
        unet, learned = learning_unet(way, BOTH, calls, checkpoint=checkpoint)
        with torch.no_grad():
            for p in learned.weights:
                p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        sizes: dict[int, int] = {}

        def pack(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(unet)
        loss.backward()
        parameters = [*learned.weights, *learned.scales]
        assert all(p.grad is not None for p in parameters)
        gradients.append([p.grad for p in parameters])
        kept.append(sum(sizes.values()))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)
    assert kept[1] < 0.75 * kept[0]


def test_published_memory_ratios() -> None:
    """Weights, gradients and Adam of a small UNet, of which rank 32 adds 26 %: .51, .38, .32 with
    Φ0 in float32, bfloat16 and int8, and .13 for rank 8 with int8 (from shapes alone)."""
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (128, 128, 192),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 192,
        "norm_num_groups": 16,
    }

    def memory(way: str, **options: Any) -> tuple[int, int]:
        """Bytes, and parameters that are trained beside scales."""
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel(**settings)
        spec = parse_spec(first_last="same", **WEIGHTS)
        learned = learn_(unet, spec, Learning(way, **options))
        held = sum(t.nbytes for t in [*unet.parameters(), *unet.buffers()])
        trained = sum(p.numel() for p in [*learned.weights, *learned.scales])
        # A gradient and Adam's two moments, float32 each.
        return held + 12 * trained, sum(p.numel() for p in learned.weights)

    full, weights = memory("lsq")
    assert memory("lrqat", rank=32)[1] / weights == pytest.approx(0.26, abs=0.005)
    for base, rank, expected in (
        ("float32", 32, 0.51),
        ("bfloat16", 32, 0.38),
        ("int8", 32, 0.32),
        ("int8", 8, 0.13),
    ):
        found = memory("lrqat", base=base, rank=rank)[0] / full
        assert found == pytest.approx(expected, abs=0.01), (base, rank)


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ({"weights": {"symmetric": False}}, {}, "only symmetric grids are learned"),
        ({"layers": {"*conv_in": {"weights": {"symmetric": False}}}}, {}, "only symmetric grids"),
        ({"weights": {"rounding": "gptq"}}, {}, "training begins from nearest"),
        ({"time_groups": 2}, {}, "time_groups=2: scales are learned for all timesteps"),
        ({"bias_correction": True}, {}, "bias_correction=true"),
        ({"weights": {"bits": 16}}, {}, "does not hold weights of 16 bits"),
        ({}, {"way": "lora"}, "learning.way=lora: allowed are lsq, lrqat, peqa"),
        ({}, {"base": "int4"}, "learning.base=int4: allowed are float32"),
        ({}, {"rank": 0}, "learning.rank=0: must be a whole number, 1 or more"),
        ({}, {"alpha": "big"}, "learning.alpha=big: must be a number"),
    ],
)
def test_refuses(spec: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        learning_unet(**{"way": "lrqat", "spec": {**WEIGHTS, **spec}, **options})
    assert "\n" not in str(caught.value)


def test_a_training_that_diverged_is_told() -> None:
    unet, learned = learning_unet("peqa")
    with torch.no_grad():
        learned.scales[3][0] = float("nan")
    with pytest.raises(ValueError, match=r"unet\..*the training diverged"):
        fuse_(unet, parse_spec(**WEIGHTS))
