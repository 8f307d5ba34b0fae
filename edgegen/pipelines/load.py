"""`load`: a plain diffusers pipeline from whatever form a checkpoint has."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DiffusionPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTokenizer

from .. import assets
from .autoencoders import read_autoencoder, unscaled_encoder
from .checkpoints import WEIGHT_ENDINGS
from .folder import LEFT_OUT, MODELS, Reader, load_folder, read_index
from .hub import fetch, is_hub_id
from .recommended import FILE as SAMPLING
from .schedulers import make_scheduler
from .single_file import load_single_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# Arguments of `load` that a model's config may hold beside its source.
OPTIONS = ("vae", "prediction_type", "tokenizer", "config", "variant", "dtype", "allow_pickle")


def load(
    source: str | Path,
    *,
    vae: str | Path | torch.nn.Module | None = None,
    scheduler: str | SchedulerMixin | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: str | Path | None = None,
    variant: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    allow_pickle: bool = False,
    reader: Reader | None = None,
) -> DiffusionPipeline:
    """Load a Stable Diffusion family model as a plain diffusers pipeline, in `eval` mode.

    The family: SD 1.x, SD 2.x, SDXL and InstructPix2Pix. No code of a checkpoint is ever run, and
    no safety checker is loaded.

    Args:
        source: the name of an embedded model (checked against its sha256), a diffusers folder, a
            `.safetensors` file in the original (LDM) layout, or a hub id `owner/name`. An embedded
            name wins over a folder of that name: write `./name` for the folder.
        vae: autoencoder to use instead: `"taesd"` (the hub's, for SD or SDXL), a folder, a hub id
            or a module (`AutoencoderTiny` or `AutoencoderKL`).
        scheduler: name of a diffusers scheduler (see `schedulers.scheduler_names`), which takes
            over the noise schedule of the model's own, or an instance.
        prediction_type: `epsilon`, `v_prediction` or `sample`, where the checkpoint is wrong or
            silent about it (single files of SD 2.x).
        tokenizer: for single files, which hold none: a `CLIPTokenizer`, its folder or hub id;
            default the hub's `openai/clip-vit-large-patch14`.
        config: for single files: a diffusers folder whose configurations replace what the tensor
            shapes tell, and whose tokenizers are used.
        variant: of the weights in a folder or on the hub, such as `"fp16"`.
        dtype: of all weights: a torch dtype or its name (`DTYPES`).
        device: where to put the pipeline; default the CPU.
        allow_pickle: read `.ckpt`, `.bin`, `.pt` too, with `weights_only=True`.
        reader: reads the networks in a folder that are stored in a form of their own;
            `edgegen.load` has one for quantized networks.

    Raises:
        ValueError, FileNotFoundError: one line that names what is wrong and what is allowed.
    """
    dtype, target = _dtype(dtype), _device(device)
    path = _locate(source, variant, allow_pickle)
    cls: type[DiffusionPipeline]
    if path.is_file():
        if variant is not None:
            raise ValueError(f"variant '{variant}': only for folders and hub ids, not for {path}")
        cls, parts = load_single_file(
            path,
            dtype=dtype,
            prediction_type=prediction_type,
            tokenizer=tokenizer,
            config=config,
            allow_pickle=allow_pickle,
        )
    else:
        if tokenizer is not None or config is not None:
            raise ValueError(f"tokenizer and config are for single files, not for {path}")
        cls, parts = load_folder(
            path, dtype=dtype, variant=variant, allow_pickle=allow_pickle, reader=reader
        )

    taken = inspect.signature(cls.__init__).parameters
    required = [*MODELS, "tokenizer", "tokenizer_2", "scheduler"]
    if absent := [name for name in required if name in taken and name not in parts]:
        raise ValueError(f"{path}: {cls.__name__} needs a {absent[0]}, which is missing")
    parts["scheduler"] = make_scheduler(scheduler, parts["scheduler"], prediction_type)
    if vae is not None:
        other = read_autoencoder(
            vae, xl=cls is StableDiffusionXLPipeline, dtype=dtype, allow_pickle=allow_pickle
        )
        parts["vae"] = _exchanged(parts["vae"], other, cls)
    _check_fit(path, cls, parts)

    parts |= dict.fromkeys(LEFT_OUT) | {"requires_safety_checker": False}
    pipe = cls(**{name: part for name, part in parts.items() if name in taken})
    pipe.register_to_config(_name_or_path=str(path))
    return pipe if target is None else pipe.to(target)


def _locate(source: str | Path, variant: str | None, allow_pickle: bool) -> Path:
    """The local file or folder of `source`, fetched from the hub if need be."""
    name, path = str(source), Path(source).expanduser()
    if name in assets.model_names():
        return assets.model_folder(name)
    if name and path.is_dir():
        return path
    if path.is_file():
        if path.suffix not in WEIGHT_ENDINGS:
            raise ValueError(
                f"{path}: no checkpoint by its ending; allowed are {', '.join(WEIGHT_ENDINGS)}"
            )
        return path
    if "/" not in name and path.suffix not in WEIGHT_ENDINGS:
        raise ValueError(
            f"model '{name}' is unknown: allowed are the embedded "
            f"{', '.join(assets.model_names()) or '(none)'}, a diffusers folder, a .safetensors "
            "file or a hub id owner/name"
        )
    local = path.suffix in WEIGHT_ENDINGS or path.parent.is_dir()
    if local or not is_hub_id(name):
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _fetch_pipeline(name, variant, allow_pickle)


def _fetch_pipeline(repository: str, variant: str | None, allow_pickle: bool) -> Path:
    folder = fetch(repository, ["model_index.json"])
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"hub model '{repository}' is no diffusers pipeline: no model_index.json")
    # Refuses what is not supported before gigabytes are fetched.
    index = read_index(folder)
    patterns = ["model_index.json", SAMPLING]
    mark = f".{variant}" if variant else ""
    for name in index:
        patterns += [f"{name}/*.json", f"{name}/*.txt"] if name not in LEFT_OUT else []
        for stem in ("diffusion_pytorch_model", "model") if name in MODELS else ():
            patterns += [f"{name}/{stem}{mark}.safetensors", f"{name}/{stem}{mark}-0*.safetensors"]
        for stem in ("diffusion_pytorch_model", "pytorch_model") if name in MODELS else ():
            patterns += [f"{name}/{stem}{mark}.bin"] if allow_pickle else []
    return fetch(repository, patterns)


def _exchanged(current: ModelMixin, other: ModelMixin, cls: type[DiffusionPipeline]) -> ModelMixin:
    """`other`, made to stand in for the pipeline's own autoencoder."""
    for what, old, new in (
        ("latent channels", current.config.latent_channels, other.config.latent_channels),
        ("times smaller latents", _factor(current), _factor(other)),
    ):
        if old != new:
            raise ValueError(f"vae: it gives {new} {what}, but the model needs {old}")
    edits = issubclass(cls, StableDiffusionInstructPix2PixPipeline)
    if edits and isinstance(other, AutoencoderTiny) and not isinstance(current, AutoencoderTiny):
        return unscaled_encoder(other, current.config.scaling_factor / other.config.scaling_factor)
    return other


def _factor(vae: ModelMixin) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _check_fit(path: Path, cls: type[DiffusionPipeline], parts: dict[str, Any]) -> None:
    unet, latent = parts["unet"].config, parts["vae"].config.latent_channels
    wanted = 2 * latent if issubclass(cls, StableDiffusionInstructPix2PixPipeline) else latent
    if unet.in_channels != wanted or unet.out_channels != latent:
        raise ValueError(
            f"{path}: the UNet maps {unet.in_channels} to {unet.out_channels} channels, but "
            f"{cls.__name__} with this autoencoder needs {wanted} to {latent}"
        )
    encoders = [parts[name] for name in ("text_encoder", "text_encoder_2") if name in parts]
    width = sum(encoder.config.hidden_size for encoder in encoders)
    if unet.encoder_hid_dim is None and unet.cross_attention_dim not in (width, (width,)):
        raise ValueError(
            f"{path}: the UNet attends to text features of width {unet.cross_attention_dim}, but "
            f"the text encoder gives {width}"
        )
    tokenizers = [parts[name] for name in ("tokenizer", "tokenizer_2") if name in parts]
    for tokenizer, encoder in zip(tokenizers, encoders, strict=False):
        if len(tokenizer) > encoder.config.vocab_size:
            raise ValueError(
                f"{path}: the tokenizer has {len(tokenizer)} tokens, but the text encoder knows "
                f"{encoder.config.vocab_size}"
            )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ValueError(f"dtype '{dtype}' is not allowed: allowed are {', '.join(DTYPES)}")
    return found


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"device '{device}' cannot be used: {line}") from error
    return target
