"""Reading a single-file checkpoint in the original LDM layout, without network.

Weights are converted by diffusers' own functions; the architecture comes from `ldm_layout`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from .checkpoints import one_line, read_json, read_weights
from .folder import load_scheduler
from .ldm_layout import Layout, read_layout
from .tokenizers import clip_tokenizers

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# The step at which training of SD 2.0-base, an epsilon model, ended.
_SD2_BASE_STEPS = 875_000
_NOT_WEIGHTS = ("position_ids", "logit_scale")

_log = logging.getLogger(__name__)


def load_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    prediction_type: str | None = None,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
) -> tuple[type[DiffusionPipeline], dict[str, Any]]:
    """Pipeline class and its arguments, read from one `.safetensors` file.

    Args:
        prediction_type: what the UNet predicts; None finds out (see `find_prediction_type`).
        tokenizer: a CLIP tokenizer, its folder or hub id, since such a file holds none.
        config: diffusers folder whose component configurations, tokenizers and scheduler are used
            instead of what the tensor shapes tell; it needs no weights.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    path = Path(path)
    weights, metadata = read_weights(path, allow_pickle)
    try:
        layout = read_layout({name: tuple(tensor.shape) for name, tensor in weights.items()})
    except KeyError as error:
        raise ValueError(f"{path}: incomplete checkpoint, it lacks {error.args[0]}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    configs = Path(config).expanduser() if config is not None else None
    if configs is not None and not configs.is_dir():
        raise FileNotFoundError(f"config '{config}': no such folder")

    vae = _config(configs, "vae", layout.vae)
    unet = _config(configs, "unet", layout.unet)
    parts: dict[str, Any] = clip_tokenizers(path, layout.family, configs, tokenizer)
    if configs is not None and (configs / "scheduler").is_dir():
        parts["scheduler"] = _given_scheduler(configs / "scheduler")
    else:
        if prediction_type is None:
            prediction_type = find_prediction_type(layout, weights, metadata, path)
        parts["scheduler"] = _scheduler(layout, prediction_type, "ztsnr" in weights)
    if "sample_size" not in unet:
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        base = layout.family == "sd2" and prediction_type == "epsilon"
        unet["sample_size"] = (512 if base else layout.vae["sample_size"]) // factor
    converted = convert_ldm_unet_checkpoint(weights, config=unet)
    parts["unet"] = _fill(path, UNet2DConditionModel, unet, converted, dtype)
    converted = convert_ldm_vae_checkpoint(weights, config=vae)
    parts["vae"] = _fill(path, AutoencoderKL, vae, converted, dtype)
    for name in layout.text_encoders:
        parts[name] = _text_encoder(path, name, layout, weights, configs, dtype)
    if layout.family == "sdxl":
        return StableDiffusionXLPipeline, parts
    return (
        StableDiffusionInstructPix2PixPipeline if layout.edits else StableDiffusionPipeline,
        parts,
    )


def find_prediction_type(
    layout: Layout, weights: dict[str, torch.Tensor], metadata: dict[str, str], path: Path
) -> str:
    """`epsilon` or `v_prediction`, which tensor shapes cannot tell.

    In this order: the metadata `modelspec.prediction_type`; a tensor `v_pred`, with which
    fine-tuned v-prediction models are marked; for SD 2.x, the training step of its base model,
    else `v_prediction`, as diffusers takes it, with a warning.
    """
    stated = metadata.get("modelspec.prediction_type")
    if stated in ("epsilon", "v"):
        return {"epsilon": "epsilon", "v": "v_prediction"}[stated]
    if "v_pred" in weights:
        return "v_prediction"
    if layout.family != "sd2" or layout.edits:
        return "epsilon"
    if "global_step" in weights and int(weights["global_step"]) == _SD2_BASE_STEPS:
        return "epsilon"
    _log.warning(
        "%s: taken for a v-prediction model (SD 2.x at 768 px); for an SD 2.x base model (512 px) "
        "pass prediction_type='epsilon'",
        path,
    )
    return "v_prediction"


def _config(configs: Path | None, name: str, read: dict[str, Any]) -> dict[str, Any]:
    if configs is None or not (configs / name / "config.json").is_file():
        return dict(read)
    content = read_json(configs / name / "config.json")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _given_scheduler(folder: Path) -> SchedulerMixin:
    content = read_json(folder / "scheduler_config.json")
    return load_scheduler(folder, str(content.get("_class_name")))


def _scheduler(layout: Layout, prediction_type: str, zero_snr: bool) -> SchedulerMixin:
    common = {**_BETAS, "steps_offset": 1, "prediction_type": prediction_type}
    if layout.edits:
        return EulerAncestralDiscreteScheduler(**common)
    if layout.family == "sdxl":
        return EulerDiscreteScheduler(
            **common, timestep_spacing="leading", rescale_betas_zero_snr=zero_snr
        )
    if layout.family == "sd2":
        return DDIMScheduler(
            **common,
            clip_sample=False,
            set_alpha_to_one=False,
            rescale_betas_zero_snr=zero_snr,
        )
    return PNDMScheduler(**common, skip_prk_steps=True, set_alpha_to_one=False)


def _text_encoder(
    path: Path,
    name: str,
    layout: Layout,
    weights: dict[str, torch.Tensor],
    configs: Path | None,
    dtype: torch.dtype,
) -> PreTrainedModel:
    prefix, config = layout.text_encoders[name]
    if configs is not None and (configs / name / "config.json").is_file():
        config = CLIPTextConfig(**read_json(configs / name / "config.json"))
    cls = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
    with init_empty_weights(include_buffers=False):
        model = cls(config)
    own = {key: value for key, value in weights.items() if key.startswith(prefix)}
    if prefix.endswith("model."):
        converted = convert_open_clip_checkpoint(model, own, prefix=prefix)
    else:
        converted = convert_ldm_clip_checkpoint(own)
    layers = tuple(
        f"text_model.encoder.layers.{index}."
        for index in range(config.num_hidden_layers, config.num_hidden_layers + 2)
    )
    kept = {}
    for key, value in converted.items():
        if key.startswith(layers) or (key == "text_projection.weight" and cls is CLIPTextModel):
            continue  # the last layer of SD 2.x, which is not used
        # CLIPTextModel has no inner text_model since transformers 5.6.
        kept[key if hasattr(model, "text_model") else key.removeprefix("text_model.")] = value
    return _assign(path, model, kept, dtype)


def _fill(
    path: Path,
    cls: type[ModelMixin],
    config: dict[str, Any],
    converted: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> ModelMixin:
    try:
        with init_empty_weights(include_buffers=False):
            model = cls(**config)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: its shapes fit no {cls.__name__} with {config.get('norm_num_groups')} "
            f"normalization groups ({one_line(error)}): pass config=FOLDER"
        ) from error
    return _assign(path, model, converted, dtype)


def _assign(
    path: Path,
    model: ModelMixin | PreTrainedModel,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> ModelMixin | PreTrainedModel:
    # Copies: tensors of a safetensors file are views of the mapped file.
    own = {
        key: value.to(dtype, copy=True).contiguous()
        for key, value in weights.items()
        if not key.endswith(_NOT_WEIGHTS)
    }
    name = type(model).__name__
    expected = model.state_dict()
    if missing := sorted(set(expected) - set(own)):
        raise ValueError(f"{path}: lacks {len(missing)} weights of {name}, first {missing[0]}")
    if extra := sorted(set(own) - set(expected)):
        raise ValueError(f"{path}: {len(extra)} weights do not fit {name}, first {extra[0]}")
    for key, value in own.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"{path}: {key} of {name} is {tuple(value.shape)}, expected "
                f"{tuple(expected[key].shape)}"
            )
    model.load_state_dict(own, assign=True)
    return model.eval()
