from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from edgegen.pipelines.ldm_layout import read_layout
from edgegen.pipelines.load import load

SCHEDULERS = {
    "sd1": PNDMScheduler,
    "sd2": DDIMScheduler,
    "sdxl": EulerDiscreteScheduler,
    "ip2p": EulerAncestralDiscreteScheduler,
}
ToLdm = Callable[[DiffusionPipeline], dict[str, torch.Tensor]]
Pipes = dict[str, DiffusionPipeline]


def draw(pipe: DiffusionPipeline, steps: int = 2) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16}
    if type(pipe).__name__ == "StableDiffusionInstructPix2PixPipeline":
        size = {"image": Image.linear_gradient("L").convert("RGB").resize((16, 16))}
    return pipe(
        "a fox",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **size,
    ).images


@pytest.fixture
def ldm_file(tmp_path: Path, pipelines: Pipes, to_ldm: ToLdm) -> Callable[..., Path]:
    def write(family: str, metadata: dict[str, str] | None = None, **more: torch.Tensor) -> Path:
        path = tmp_path / f"{family}.safetensors"
        save_file(to_ldm(pipelines[family]) | more, path, metadata=metadata)
        return path

    return write


@pytest.mark.parametrize("family", SCHEDULERS)
def test_weights_and_picture_equal_those_of_the_source(
    family: str, pipelines: Pipes, ldm_file: Callable[..., Path], tokenizer_folder: Path
) -> None:
    source = pipelines[family]
    pipe = load(ldm_file(family), tokenizer=tokenizer_folder)
    assert type(pipe) is type(source)
    for name, part in source.components.items():
        if isinstance(part, torch.nn.Module):
            expected, loaded = part.state_dict(), pipe.components[name].state_dict()
            assert expected.keys() == loaded.keys()
            assert all(torch.equal(expected[key], loaded[key]) for key in expected)
            assert not pipe.components[name].training
    assert isinstance(pipe.scheduler, SCHEDULERS[family])
    assert pipe.scheduler.config.prediction_type == source.scheduler.config.prediction_type
    assert pipe.vae.config.scaling_factor == source.vae.config.scaling_factor
    # Padding with token 0 alone differs from the source's tokenizer in SD 2.x.
    pipe.tokenizer = source.tokenizer
    np.testing.assert_array_equal(draw(pipe), draw(source))


def test_open_clip_tokenizers_pad_with_token_zero(
    ldm_file: Callable[..., Path], tokenizer_folder: Path
) -> None:
    for family, name in (("sd2", "tokenizer"), ("sdxl", "tokenizer_2")):
        pipe = load(ldm_file(family), tokenizer=tokenizer_folder)
        tokenizer = pipe.components[name]
        ids = tokenizer("a fox", padding="max_length", max_length=77).input_ids
        assert ids[-1] == 0
    assert pipe.tokenizer("a fox", padding="max_length", max_length=77).input_ids[-1] > 0


@pytest.mark.parametrize(
    ("more", "metadata", "expected"),
    [
        ({}, None, "v_prediction"),
        ({"global_step": torch.tensor(875000)}, None, "epsilon"),
        ({"global_step": torch.tensor(110000)}, None, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_prediction_type_of_sd2(
    more: dict[str, torch.Tensor],
    metadata: dict[str, str] | None,
    expected: str,
    ldm_file: Callable[..., Path],
    tokenizer_folder: Path,
) -> None:
    path = ldm_file("sd2", metadata, **more)
    pipe = load(path, tokenizer=tokenizer_folder)
    assert pipe.scheduler.config.prediction_type == expected
    # 512 px for the epsilon model, 768 px for the other; this autoencoder halves each side.
    assert pipe.unet.config.sample_size == {"epsilon": 256, "v_prediction": 384}[expected]
    other = load(path, tokenizer=tokenizer_folder, prediction_type="sample")
    assert other.scheduler.config.prediction_type == "sample"


def test_marked_v_prediction_of_sdxl(ldm_file: Callable[..., Path], tokenizer_folder: Path) -> None:
    path = ldm_file("sdxl", v_pred=torch.zeros(1), ztsnr=torch.zeros(1))
    config = load(path, tokenizer=tokenizer_folder).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr


def test_config_folder_replaces_what_shapes_tell(
    ldm_file: Callable[..., Path], folders: dict[str, Path]
) -> None:
    pipe = load(ldm_file("sd2"), config=folders["sd2"])
    assert pipe.unet.config.sample_size == 8
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    np.testing.assert_array_equal(draw(pipe), draw(load(folders["sd2"])))


def test_half_precision_and_tokenizer_object(
    ldm_file: Callable[..., Path], tokenizer_folder: Path
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    pipe = load(ldm_file("sd1"), tokenizer=tokenizer, dtype="bfloat16")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


def test_pickle_only_on_request(
    tmp_path: Path, pipelines: Pipes, to_ldm: ToLdm, tokenizer_folder: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": to_ldm(pipelines["sd2"]), "global_step": 875000}, path)
    with pytest.raises(ValueError, match=r"model\.ckpt: a pickle.*allow_pickle=True"):
        load(path, tokenizer=tokenizer_folder)
    pipe = load(path, tokenizer=tokenizer_folder, allow_pickle=True)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    expected = pipelines["sd2"].unet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in pipe.unet.state_dict().items())


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_allowed_pickle_still_runs_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": _Bomb(tmp_path / "ran")}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: not readable as tensors only"):
        load(tmp_path / "evil.ckpt", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "transformer checkpoint .Flux"),
        (["blocks.0.self_attn.q.weight", "head.modulation"], "transformer checkpoint .Wan"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA, not a checkpoint"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one component in diffusers' layout"),
        (["layer1.weight"], "unknown architecture .first tensor: layer1.weight."),
        (["model.diffusion_model.input_blocks.0.0.weight"], "no autoencoder"),
    ],
)
def test_other_files_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def test_inpainting_unet_is_refused(
    tmp_path: Path, pipelines: Pipes, to_ldm: ToLdm, tokenizer_folder: Path
) -> None:
    weights = to_ldm(pipelines["sd1"])
    weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(weights, tmp_path / "inpaint.safetensors")
    with pytest.raises(ValueError, match=r"takes 9 channels .inpainting.*allowed are 4.*8"):
        load(tmp_path / "inpaint.safetensors", tokenizer=tokenizer_folder)


def test_missing_weight_is_named(
    tmp_path: Path, pipelines: Pipes, to_ldm: ToLdm, tokenizer_folder: Path
) -> None:
    for key, inner in (
        ("model.diffusion_model.out.0.bias", "conv_norm_out.bias"),
        ("first_stage_model.decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
    ):
        weights = to_ldm(pipelines["sd1"])
        del weights[key]
        save_file(weights, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"lacks 1 weights of .*{inner}"):
            load(tmp_path / "x.safetensors", tokenizer=tokenizer_folder)


def test_truncated_and_missing_files(tmp_path: Path, ldm_file: Callable[..., Path]) -> None:
    path = ldm_file("sd1")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"sd1\.safetensors: truncated"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt: no checkpoint by its ending.*safetensors"):
        load(tmp_path / "notes.txt")


def test_tokenizer_that_does_not_fit(ldm_file: Callable[..., Path], tmp_path: Path) -> None:
    path = ldm_file("sd1")
    names = {**{str(number): number for number in range(2000)}}
    names |= {"<|startoftext|>": 2000, "<|endoftext|>": 2001}
    CLIPTokenizer(vocab=names, merges=[]).save_pretrained(tmp_path / "big")
    with pytest.raises(ValueError, match="tokenizer has 2002 tokens, but the text encoder knows"):
        load(path, tokenizer=tmp_path / "big")
    with pytest.raises(FileNotFoundError, match=r"tokenizer '\./nowhere': no such folder"):
        load(path, tokenizer="./nowhere")


def test_without_tokenizer_or_network(
    ldm_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.*pass tokenizer=FOLDER"):
        load(ldm_file("sd1"))


PUBLISHED = {
    # stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0 on the hub.
    "sd1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
TEXT = {  # width, layers, heads, feed-forward width, activation
    "sd1": [(768, 12, 12, 3072, "quick_gelu")],
    "sd2": [(1024, 23, 16, 4096, "gelu")],
    "sdxl": [(768, 12, 12, 3072, "quick_gelu"), (1280, 32, 20, 5120, "gelu")],
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_layout_of_the_published_models(family: str, to_ldm: ToLdm) -> None:
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
    }
    encoders = {}
    names = ("text_encoder", "text_encoder_2")
    with torch.device("meta"):
        for name, (width, layers, heads, inner, act) in zip(names, TEXT[family], strict=False):
            config = CLIPTextConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                hidden_act=act,
                projection_dim=width,
            )
            cls = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
            encoders[name] = cls(config)
        parts = {"unet": UNet2DConditionModel(**PUBLISHED[family]), "vae": AutoencoderKL(**vae)}
    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    parts |= encoders | {"tokenizer": None, "scheduler": None}
    if family == "sdxl":
        parts |= {"tokenizer_2": None, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    weights = to_ldm(cls(**parts))

    layout = read_layout({name: tuple(tensor.shape) for name, tensor in weights.items()})
    assert (layout.family, layout.edits) == (family, False)
    for key, value in PUBLISHED[family].items():
        assert layout.unet[key] == value, key
    assert {key: layout.vae[key] for key in vae} == vae
    for name, (width, layers, heads, inner, act) in zip(names, TEXT[family], strict=False):
        config = layout.text_encoders[name][1]
        found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
        assert found == (width, layers, heads)
        assert (config.intermediate_size, config.hidden_act) == (inner, act)
