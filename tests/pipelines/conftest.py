"""Tiny random models of each family, and the same weights under their original (LDM) names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd1", "sd2", "sdxl", "ip2p")
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_WIDTH = 32  # of text features


def train_tokenizer(captions: list[str], size: int) -> CLIPTokenizer:
    blank = CLIPTokenizer(vocab={}, merges=[])
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = blank.backend_tokenizer.normalizer
    bpe.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    # Every byte in both positions, so that nothing is unknown: unknown is the end token.
    names = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(m) for m in merges)]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(["a red apple, noto style", "a fox, fluent style"] * 3, 560)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def _text_config(tokenizer: CLIPTokenizer, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=_WIDTH,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def _vae(**changes: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
        **changes,
    )


def _unet(depths: tuple[int, ...], **changes: object) -> UNet2DConditionModel:
    crossed = [depth > 0 for depth in depths]
    settings = {
        "sample_size": 8,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 2,
        "down_block_types": tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in crossed),
        "up_block_types": tuple("CrossAttnUpBlock2D" if x else "UpBlock2D" for x in crossed[::-1]),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": _WIDTH,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def build(family: str, tokenizer: CLIPTokenizer) -> DiffusionPipeline:
    torch.manual_seed(0)
    if family == "sdxl":
        unet = _unet(
            (0, 2, 3),
            cross_attention_dim=2 * _WIDTH,
            attention_head_dim=(1, 1, 1),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        )
        second = CLIPTokenizer.from_pretrained(tokenizer.name_or_path)
        second.pad_token = "!"
        return StableDiffusionXLPipeline(
            vae=_vae(scaling_factor=0.13025),
            text_encoder=CLIPTextModel(_text_config(tokenizer, "quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, "gelu")),
            tokenizer=tokenizer,
            tokenizer_2=second,
            unet=unet,
            scheduler=EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading"),
            add_watermarker=False,
        )
    cls = StableDiffusionPipeline
    act = "quick_gelu"
    if family == "sd1":
        unet = _unet((1, 1, 0))
        scheduler = PNDMScheduler(
            **_BETAS, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False
        )
    elif family == "sd2":
        act = "gelu"
        unet = _unet((1, 1, 0), attention_head_dim=(1, 1, 1), use_linear_projection=True)
        scheduler = DDIMScheduler(
            **_BETAS,
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type="v_prediction",
        )
    else:
        cls = StableDiffusionInstructPix2PixPipeline
        unet = _unet((1, 1, 0), in_channels=8)
        scheduler = EulerAncestralDiscreteScheduler(**_BETAS, steps_offset=1)
    return cls(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, act)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def pipelines(tokenizer_folder: Path) -> dict[str, DiffusionPipeline]:
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    built = {family: build(family, tokenizer) for family in FAMILIES}
    for pipe in built.values():
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
    return built


@pytest.fixture(scope="session")
def tiny_vae() -> AutoencoderTiny:
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


@pytest.fixture(scope="session")
def folders(
    pipelines: dict[str, DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    for family, pipe in pipelines.items():
        pipe.save_pretrained(root / family)
    return {family: root / family for family in pipelines}


@pytest.fixture(scope="session")
def to_ldm() -> Callable[[DiffusionPipeline], dict[str, torch.Tensor]]:
    return _to_ldm


def _to_ldm(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    weights = {
        f"model.diffusion_model.{_unet_name(key, pipe.unet)}": value
        for key, value in pipe.unet.state_dict().items()
    }
    for key, value in pipe.vae.state_dict().items():
        is_matrix = "attentions" in key and value.ndim == 2
        value = value[:, :, None, None] if is_matrix else value
        weights[f"first_stage_model.{_vae_name(key, pipe.vae)}"] = value
    first = {_inner(key): value for key, value in pipe.text_encoder.state_dict().items()}
    if isinstance(pipe, StableDiffusionXLPipeline):
        second = {_inner(key): value for key, value in pipe.text_encoder_2.state_dict().items()}
        weights |= _prefixed("conditioner.embedders.0.transformer.text_model.", first)
        weights |= _prefixed("conditioner.embedders.1.model.", _open_clip(second))
    elif pipe.text_encoder.config.hidden_act == "gelu":
        # The published files hold one layer more than the text encoder uses.
        last = pipe.text_encoder.config.num_hidden_layers - 1
        more = {
            key.replace(f"layers.{last}.", f"layers.{last + 1}."): value + 1
            for key, value in first.items()
            if f"layers.{last}." in key
        }
        open_clip = _open_clip(first | more) | {"text_projection": torch.eye(_WIDTH)}
        weights |= _prefixed("cond_stage_model.model.", open_clip)
    else:
        weights |= _prefixed("cond_stage_model.transformer.text_model.", first)
        weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(
            77
        )
    return {key: value.clone().contiguous() for key, value in weights.items()}


def _prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def _inner(key: str) -> str:
    return key.removeprefix("text_model.")


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
}


def _unet_name(key: str, unet: UNet2DConditionModel) -> str:
    for name, original in _UNET_ENDS.items():
        if key.startswith(name):
            return key.replace(name, original, 1)
    stride = unet.config.layers_per_block + 1
    where, rest = re.fullmatch(r"((?:down|up)_blocks\.\d+|mid_block)\.(.*)", key).groups()
    kind, number, rest = re.fullmatch(r"(\w+)\.(\d+)\.(.*)", rest).groups()
    number = int(number)
    if kind == "resnets":
        part, ending = rest.rsplit(".", 1)
        rest = f"{_RESNET[part]}.{ending}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    side, level = where.split(".")
    level = int(level)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * stride}.0.op.{rest.removeprefix('conv.')}"
        place = 1 if kind == "attentions" else 0
        return f"input_blocks.{1 + level * stride + number}.{place}.{rest}"
    if kind == "upsamplers":
        crossed = "CrossAttn" in unet.config.up_block_types[level]
        return f"output_blocks.{level * stride + stride - 1}.{2 if crossed else 1}.{rest}"
    return f"output_blocks.{level * stride + number}.{1 if kind == 'attentions' else 0}.{rest}"


def _vae_name(key: str, vae: AutoencoderKL) -> str:
    levels = len(vae.config.block_out_channels)
    key = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", key)
    key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = key.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
    key = key.replace("conv_norm_out", "norm_out")
    key = key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    if "attentions" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = key.replace("to_out.0", "proj_out").replace("to_", "")
    return key


def _open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    for key, value in weights.items():
        if key == "text_projection.weight":
            renamed["text_projection"] = value.T
        elif key in names:
            renamed[names[key]] = value
        elif "q_proj" in key:
            both = [weights[key.replace("q_proj", name)] for name in ("k_proj", "v_proj")]
            layer, ending = re.search(r"layers\.(\d+)\..*\.(\w+)$", key).groups()
            name = f"transformer.resblocks.{layer}.attn.in_proj_{ending}"
            renamed[name] = torch.cat([value, *both])
        elif "k_proj" not in key and "v_proj" not in key:
            key = key.replace("encoder.layers.", "transformer.resblocks.")
            key = key.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
            key = key.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
            renamed[key.replace("self_attn", "attn")] = value
    return renamed
