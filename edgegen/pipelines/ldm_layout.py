"""What a single-file checkpoint in the original LDM layout holds, read off its tensor shapes.

Names and shapes give widths, depths and the family. They do not give the number of attention heads
or of normalization groups: those are the published constants of each family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import CLIPTextConfig

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
XL_CLIP = "conditioner.embedders.0.transformer."
XL_OPEN_CLIP = "conditioner.embedders.1.model."

GROUPS = 32  # of every GroupNorm, in all of these families
HEADS = 8  # of every attention in SD 1.x
HEAD_WIDTH = 64  # of attention in SD 2.x, SDXL and in the text encoders

# Keys found only in networks that denoise with a transformer.
_TRANSFORMER_MARKS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux or Hunyuan",
    "double_layers.": "AuraFlow",
    "double_stream_blocks.": "HiDream",
    "transformer_blocks.0.scale_shift_table": "PixArt or LTX",
    "head.modulation": "Wan",
    "cap_embedder.": "Lumina",
    "cross_attn.q_linear": "Sana",
}


@dataclass(frozen=True)
class Layout:
    """The architecture of one checkpoint.

    Attributes:
        family: `sd1`, `sd2` or `sdxl`, after the text encoders.
        edits: whether the UNet also takes the latents of a picture (InstructPix2Pix).
        unet: arguments of `UNet2DConditionModel`.
        vae: arguments of `AutoencoderKL`.
        text_encoders: key prefix in the file and configuration, by component name.
    """

    family: Literal["sd1", "sd2", "sdxl"]
    edits: bool
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: dict[str, tuple[str, CLIPTextConfig]]


def read_layout(shapes: Shapes) -> Layout:
    """The layout of a checkpoint from the shapes of its tensors.

    Raises:
        ValueError: one line saying what the file is instead, or what it lacks.
    """
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise ValueError(_what_instead(shapes))
    if f"{VAE}decoder.conv_in.weight" not in shapes:
        raise ValueError(f"no autoencoder in it (no {VAE}* tensors): a whole checkpoint is needed")
    if any(name.startswith(XL_OPEN_CLIP) for name in shapes):
        family: Literal["sd1", "sd2", "sdxl"] = "sdxl"
        encoders = {"text_encoder": (XL_CLIP, _clip(shapes, XL_CLIP))}
        encoders["text_encoder_2"] = (XL_OPEN_CLIP, _open_clip(shapes, XL_OPEN_CLIP, dropped=0))
    elif any(name.startswith(OPEN_CLIP) for name in shapes):
        # SD 2.x conditions on the last layer but one: diffusers leaves the last away.
        family = "sd2"
        encoders = {"text_encoder": (OPEN_CLIP, _open_clip(shapes, OPEN_CLIP, dropped=1))}
    elif any(name.startswith(f"{CLIP}text_model.") for name in shapes):
        family = "sd1"
        encoders = {"text_encoder": (CLIP, _clip(shapes, CLIP))}
    elif any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        raise ValueError("an SDXL refiner, which is not supported: allowed is the SDXL base model")
    else:
        raise ValueError("no CLIP text encoder in it: a whole SD 1.x, 2.x or SDXL file is needed")

    vae = _vae(shapes, family)
    latent, given = vae["latent_channels"], shapes[f"{UNET}input_blocks.0.0.weight"][1]
    if given not in (latent, 2 * latent) or (given == 2 * latent and family == "sdxl"):
        raise ValueError(
            f"its UNet takes {given} channels (inpainting, depth or upscaling?): allowed are "
            f"{latent} (text to image) and, for SD 1.x and 2.x, {2 * latent} (InstructPix2Pix)"
        )
    unet = _unet(shapes)
    if family != "sdxl" and "addition_embed_type" in unet:
        raise ValueError("its UNet takes an extra embedding (unCLIP?), which is not supported")
    return Layout(family, given == 2 * latent, unet, vae, encoders)


def _what_instead(shapes: Shapes) -> str:
    for mark, name in _TRANSFORMER_MARKS.items():
        if any(mark in key for key in shapes):
            return (
                f"a transformer checkpoint ({name}, by its '{mark}' tensors); edgegen works on "
                "UNets of the Stable Diffusion family: SD 1.x, SD 2.x, SDXL, InstructPix2Pix"
            )
    if any("lora" in key.lower() for key in shapes):
        return "a LoRA, not a checkpoint: load its base model, then pipe.load_lora_weights(file)"
    if any(key.startswith(("down_blocks.", "encoder.down_blocks.")) for key in shapes):
        return "one component in diffusers' layout: give the folder of the whole pipeline instead"
    first = min(shapes, default="no tensors at all")
    return (
        f"an unknown architecture (first tensor: {first}): allowed are SD 1.x, SD 2.x, SDXL and "
        "InstructPix2Pix checkpoints in the original (LDM) layout"
    )


def _unet(shapes: Shapes) -> dict[str, Any]:
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    levels: list[list[tuple[int, int]]] = [[]]  # per level and block: channels, transformer depth
    index = 1
    while True:
        block = f"{UNET}input_blocks.{index}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        elif f"{block}0.out_layers.3.weight" in shapes:
            channels = shapes[f"{block}0.out_layers.3.weight"][0]
            levels[-1].append((channels, count(shapes, f"{block}1.transformer_blocks.")))
        else:
            break
        index += 1
    if not all(levels) or any(
        len(set(level)) != 1 or len(level) != len(levels[0]) for level in levels
    ):
        raise ValueError("its UNet has uneven levels, so it is none of SD 1.x, SD 2.x or SDXL")
    widths = tuple(level[0][0] for level in levels)
    depths = [level[0][1] for level in levels]
    crossed = [depth > 0 for depth in depths]
    # The mid block takes the depth of the last level, which may have no transformer of its own.
    depths[-1] = count(shapes, f"{UNET}middle_block.1.transformer_blocks.")
    middle = f"{UNET}middle_block.1."
    if not depths[-1]:
        raise ValueError("its UNet has no attention in the middle: none of SD 1.x, SD 2.x or SDXL")
    linear = len(shapes[f"{middle}proj_in.weight"]) == 2
    config: dict[str, Any] = {
        "in_channels": first[1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "norm_num_groups": GROUPS,
        "down_block_types": tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in crossed),
        "up_block_types": tuple("CrossAttnUpBlock2D" if x else "UpBlock2D" for x in crossed[::-1]),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": linear,
        # diffusers' misnomer: the number of heads.
        "attention_head_dim": tuple(max(1, c // HEAD_WIDTH) for c in widths) if linear else HEADS,
    }
    if f"{UNET}label_emb.0.0.weight" in shapes:
        pooled = shapes.get(f"{XL_OPEN_CLIP}text_projection", (0, 0))[1]
        total = shapes[f"{UNET}label_emb.0.0.weight"][1]
        config["addition_embed_type"] = "text_time"
        # Six numbers: original size, crop corner, target size.
        config["addition_time_embed_dim"] = (total - pooled) // 6
        config["projection_class_embeddings_input_dim"] = total
    return config


def _vae(shapes: Shapes, family: str) -> dict[str, Any]:
    down = f"{VAE}encoder.down."
    levels = count(shapes, down)
    return {
        "in_channels": shapes[f"{VAE}encoder.conv_in.weight"][1],
        "out_channels": shapes[f"{VAE}decoder.conv_out.weight"][0],
        "block_out_channels": tuple(
            shapes[f"{down}{level}.block.0.conv1.weight"][0] for level in range(levels)
        ),
        "layers_per_block": count(shapes, f"{down}0.block."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "norm_num_groups": GROUPS,
        "scaling_factor": 0.13025 if family == "sdxl" else 0.18215,
        "sample_size": {"sd1": 512, "sd2": 768, "sdxl": 1024}[family],
    }


def _clip(shapes: Shapes, prefix: str) -> CLIPTextConfig:
    model = f"{prefix}text_model."
    tokens = shapes.get(f"{model}embeddings.token_embedding.weight")
    if tokens is None:
        raise ValueError(f"no CLIP text encoder in it (no {model}* tensors)")
    return _text_config(
        tokens,
        positions=shapes[f"{model}embeddings.position_embedding.weight"][0],
        layers=count(shapes, f"{model}encoder.layers."),
        intermediate=shapes[f"{model}encoder.layers.0.mlp.fc1.weight"][0],
        hidden_act="quick_gelu",
    )


def _open_clip(shapes: Shapes, prefix: str, dropped: int) -> CLIPTextConfig:
    blocks = f"{prefix}transformer.resblocks."
    tokens = shapes[f"{prefix}token_embedding.weight"]
    return _text_config(
        tokens,
        positions=shapes[f"{prefix}positional_embedding"][0],
        layers=count(shapes, blocks) - dropped,
        intermediate=shapes[f"{blocks}0.mlp.c_fc.weight"][0],
        hidden_act="gelu",
        projection_dim=shapes.get(f"{prefix}text_projection", tokens)[1],
    )


def _text_config(
    tokens: tuple[int, ...], positions: int, layers: int, intermediate: int, **others: Any
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokens[0],
        hidden_size=tokens[1],
        max_position_embeddings=positions,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=max(1, tokens[1] // HEAD_WIDTH),
        # As published: transformers takes 2 to mean "pool at the highest token".
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **others,
    )


def count(shapes: Shapes, prefix: str) -> int:
    """Number of children `prefix0.`, `prefix1.` … among the keys."""
    number = 0
    while any(key.startswith(f"{prefix}{number}.") for key in shapes):
        number += 1
    return number
