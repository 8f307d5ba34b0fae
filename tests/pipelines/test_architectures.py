"""Published and known figures, from the configs alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import constants
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from edgegen.cost import Cost, Summary, count
from edgegen.pipelines.architectures import (
    Architecture,
    architecture,
    build,
    read_architecture,
)
from edgegen.pipelines.run_cost import run_cost

MODELS = Path(__file__).parents[2] / "configs" / "model"


@cache
def model(name: str, *overrides: str) -> Architecture:
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        config = compose("flops", [f"model={name}", *overrides])
    plain = OmegaConf.to_container(config.model, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return architecture(plain)


@cache
def run(name: str, *overrides: str, **settings: Any) -> Summary:
    return run_cost(model(name, *overrides), **{"steps": 1, **settings})


@cache
def unet_call(name: str) -> Cost:
    """One UNet call on one sample."""
    return run(name, guidance=False)["unet"].call


@pytest.mark.parametrize(
    ("name", "component", "params"),
    [
        ("sd15", "unet", 859_520_964),
        ("ip2p", "unet", 859_532_484),
        ("sd21", "unet", 865_910_724),
        ("sdxl", "unet", 2_567_463_684),
        ("svd", "unet", 1_524_623_082),
        ("bk-sdm-base", "unet", 579_384_964),
        ("bk-sdm-small", "unet", 482_346_884),
        ("bk-sdm-tiny", "unet", 323_384_964),
        ("sd15", "vae", 83_653_863),
        ("sd-vae", "vae", 83_653_863),
        ("sdxl", "vae", 83_653_863),
        ("taesd", "vae", 2_445_063),
        ("sd15", "text_encoder", 123_060_480),
        ("clip-vit-l", "text_encoder", 123_060_480),
        ("sd21", "text_encoder", 340_387_840),
        ("sdxl", "text_encoder_2", 694_659_840),
        ("svd", "image_encoder", 632_076_800),
    ],
)
def test_parameters(name: str, component: str, params: int) -> None:
    """Of the published checkpoints."""
    module = build(model(name).components[component])
    assert sum(p.numel() for p in module.parameters()) == params
    assert {t.device.type for t in (*module.parameters(), *module.buffers())} == {"meta"}


def gmacs(macs: float) -> float:
    return round(macs / 1e9, 2)


def test_sd15() -> None:
    """SD 1.5 at 512 px: 401.64 GMACs, 338.61 without attention, and the table by block."""
    cost = unet_call("sd15")
    assert (gmacs(cost.macs_all), gmacs(cost.macs_conv_linear)) == (401.64, 338.61)
    assert gmacs(cost.total.attention) == 63.03
    table = {
        "down_blocks.0": (54.78, 32.90),
        "down_blocks.1": (34.18, 31.30),
        "down_blocks.2": (31.89, 31.45),
        "down_blocks.3": (3.78, 3.78),
        "mid_block": (6.05, 6.03),
        "up_blocks.0": (12.90, 12.90),
        "up_blocks.1": (75.77, 75.12),
        "up_blocks.2": (83.41, 79.08),
        "up_blocks.3": (98.78, 65.97),
    }
    blocks = cost.blocks()
    for name, figures in table.items():
        found = (blocks[name].macs_all, blocks[name].macs_conv_linear)
        assert tuple(map(gmacs, found)) == figures, name
    for name in ("conv_in", "conv_out"):
        assert round(blocks[name].macs_all / 1e9, 3) == 0.047
    assert not cost.uncounted


def test_clockwork_accounting() -> None:
    """Clockwork's Table 1: 10.8 TFLOPs for 8 steps with guidance, 228.1 GFLOPs an adaptor step."""
    summary = run("sd15", steps=8)
    assert summary["unet"].calls == 8
    assert round(summary.metrics()["cost/tflops_conv_linear"], 2) == 10.84
    cost = unet_call("sd15")
    assert round(cost.under("up_blocks.2.upsamplers").macs_conv_linear / 1e9, 1) == 15.1
    kept = ("conv_in", "down_blocks.0", "up_blocks.2.upsamplers", "up_blocks.3", "conv_out")
    gflops = 2 * sum(cost.under(name).macs_conv_linear for name in kept) / 1e9
    assert gflops == pytest.approx(228.1, abs=0.1)


def test_efficient_sd15() -> None:
    """9.5 TFLOPs for 8 steps with guidance; 1187 GFLOPs a step for both branches."""
    metrics = run("efficient-sd15", steps=8).metrics()
    assert 4 * metrics["cost/gmacs_conv_linear"] == pytest.approx(1187, abs=1.5)
    assert round(metrics["cost/tflops_conv_linear"], 1) == 9.5


@pytest.mark.parametrize(
    ("name", "published"), [("bk-sdm-base", 224), ("bk-sdm-small", 218), ("bk-sdm-tiny", 205)]
)
def test_bk_sdm(name: str, published: int) -> None:
    """GMACs of one UNet call in arXiv 2305.15798, Table 1; conv+linear, where SD has 339."""
    assert round(unet_call(name).macs_conv_linear / 1e9) == published


def test_sdxl() -> None:
    """T-GATE publishes 149.4 TMACs for 25 steps with guidance."""
    assert round(50 * unet_call("sdxl").macs_conv_linear / 1e12, 1) == 149.4


def test_ip2p() -> None:
    """Three branches a step; 401.7 GMACs a call; the source picture is encoded."""
    summary = run("ip2p", steps=2)
    assert round(summary.metrics()["cost/gmacs_all"], 1) == 401.7
    assert summary["unet"].batch == 3
    assert summary["unet"].total.macs_all == 6 * unet_call("ip2p").macs_all
    assert "vae.encoder" in summary
    assert "vae.encoder" not in run("sd15")


def test_svd() -> None:
    """44.8 TFLOPs for 14 frames of 72 × 128 latents, 8.46 for 32 × 64."""
    assert round(2 * unet_call("svd").macs_all / 1e12, 1) == 44.8
    small = run("svd", guidance=False, height=256, width=512)
    assert round(2 * small["unet"].call.macs_all / 1e12, 2) == 8.46
    assert not small.uncounted


def test_movie_stages() -> None:
    """MoViE's TFLOPs a frame at 480 px: 21.14, 16.02 with the small networks, 5.50 one branch."""
    size = {"height": 480, "width": 480, "steps": 10}
    base = run("ip2p", **size)
    small = (
        "component@model.components.vae=taesd",
        "component@model.components.unet=efficient-sd15-unet",
        "model.components.unet.in_channels=8",
    )
    total = "cost/total_tflops_conv_linear"
    texts = "cost/text_encoder_tflops_conv_linear"

    def frame(summary: Summary) -> float:
        metrics = summary.metrics()
        return metrics[total] - metrics[texts]  # the instruction is encoded once a video

    assert frame(base) == pytest.approx(21.14, abs=0.02)
    assert frame(run("ip2p", *small, **size)) == pytest.approx(16.02, abs=0.02)
    assert frame(run("ip2p", *small, **size, guidance=False)) == pytest.approx(5.50, abs=0.02)
    one_step = run("ip2p", *small, **{**size, "steps": 1}, guidance=False)
    assert frame(one_step) == pytest.approx(0.758, abs=0.005)


def test_batch_and_dtype() -> None:
    one, four = (run("bk-sdm-tiny", steps=2, batch=batch).metrics() for batch in (1, 4))
    for name in ("cost/tflops_all", "cost/gmacs_all", "cost/total_tflops_conv_linear"):
        assert four[name] == pytest.approx(one[name])  # figures are for one picture
    half = run("bk-sdm-tiny", steps=2, dtype=torch.float16).metrics()
    assert half["cost/tbops"] == pytest.approx(one["cost/tbops"] / 4)
    assert half["cost/stored_mb"] == pytest.approx(one["cost/stored_mb"] / 2)


def test_an_autoencoder_on_its_own() -> None:
    summary = run("taesd")
    assert list(summary) == ["vae.encoder", "vae.decoder"]
    assert "cost/gmacs_all" not in summary.metrics()
    swapped = run("sd15", "component@model.components.vae=taesd")
    assert swapped["vae.decoder"].total == summary["vae.decoder"].total


@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.yaml")))
def test_every_config_composes(name: str) -> None:
    if name == "custom":
        with initialize_config_module("edgegen.configs", version_base="1.3"):
            config = compose("flops", ["model=custom", "model.source=some/where"])
        assert config.model.name == "custom"
        assert config.model.source == "some/where"
        assert {value for key, value in config.model.items() if key not in ("name", "source")} == {
            None
        }
    elif name != "emoji":
        found = model(name)
        assert found.name == name
        assert all("_class_name" in config for config in found.components.values())


@pytest.fixture
def tiny() -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": [8, 12],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }


def test_random_weights_depend_on_the_seed_alone(tiny: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (build(tiny, "cpu", seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [net.state_dict()["conv_in.weight"] for net in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not one.training
    text = build(model("clip-vit-l").components["text_encoder"] | {"num_hidden_layers": 1}, "cpu")
    assert text(torch.zeros(1, 4, dtype=torch.long)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "ip2p"])
def test_folders(
    family: str, folders: dict[str, Path], pipelines: dict[str, DiffusionPipeline]
) -> None:
    """Read without weights: the same networks as the folder's pipeline has."""
    found = read_architecture(str(folders[family]))
    assert found.branches == (3 if family == "ip2p" else 2)
    assert (found.height, found.width) == (16, 16)
    built = found.build()
    for name, module in built.items():
        loaded = getattr(pipelines[family], name)
        assert {k: v.shape for k, v in module.state_dict().items()} == {
            k: v.shape for k, v in loaded.state_dict().items()
        }
    unet = pipelines[family].unet
    expected = sum(p.numel() for p in unet.parameters())
    assert run_cost(found, steps=2).metrics()["cost/params"] == expected


def test_folder_of_one_network(tiny: dict[str, Any], tmp_path: Path) -> None:
    UNet2DConditionModel.from_config(tiny).save_config(tmp_path)
    found = architecture({"name": "custom", "source": str(tmp_path), "width": 64})
    assert list(found.components) == ["unet"]
    assert (found.height, found.width) == (64, 64)  # 8 latents × 8; 64 as asked
    summary = run_cost(found, steps=3, guidance=False)
    direct = count(
        UNet2DConditionModel.from_config(tiny), torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 16)
    )
    assert summary["unet"].total.macs_all == 3 * direct.macs_all


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*cannot be reached") as caught:
        read_architecture("nobody/nothing")
    assert "\n" not in str(caught.value)


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither model_index.json nor config.json"),
        ({"model_index.json": "{"}, "model_index.json: not valid JSON"),
        ({"model_index.json": {"_class_name": "X"}}, "names no network"),
        (
            {"model_index.json": {"unet": ["diffusers", "UNet2DConditionModel"]}},
            "config.json: missing, but named in model_index.json",
        ),
        (
            {
                "model_index.json": {"transformer": ["diffusers", "SD3Transformer2DModel"]},
                "transformer/config.json": {},
            },
            "transformer is a SD3Transformer2DModel; known are UNet2DConditionModel",
        ),
        ({"config.json": {"architectures": ["T5EncoderModel"]}}, "is a T5EncoderModel; known are"),
    ],
)
def test_folders_that_cannot_be_read(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_architecture(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file; architectures are read from folders"):
        read_architecture(str(tmp_path / "model.safetensors"))
    with pytest.raises(FileNotFoundError, match="no such folder, and neither a hub id nor"):
        read_architecture("nosuchname")
    with pytest.raises(ValueError, match="model x: needs a source or components"):
        architecture({"name": "x"})


def test_configs_that_cannot_be_built(tiny: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unknown architecture Other: known are UNet2D"):
        build({"_class_name": "Other"})
    with pytest.raises(ValueError, match=r"cannot build UNet2DConditionModel: .*down_block_types"):
        build(tiny | {"block_out_channels": [8, 16, 32]})


def test_runs_that_cannot_be(tiny: dict[str, Any]) -> None:
    plain = Architecture("x", {"unet": tiny}, 64, 64)
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        run_cost(plain, steps=0)
    with pytest.raises(ValueError, match="height=60: must be a positive multiple of 8 pixels"):
        run_cost(plain, steps=1, height=60)
    with pytest.raises(ValueError, match="x names no size: give height and width"):
        run_cost(Architecture("x", {"unet": tiny}), steps=1)
    labelled = {"unet": tiny | {"class_embed_type": "timestep"}}
    with pytest.raises(ValueError, match="class_embed_type=timestep: not supported"):
        run_cost(Architecture("x", labelled, 64, 64), steps=1)
