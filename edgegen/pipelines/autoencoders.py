"""Putting another autoencoder, such as a tiny one, into a pipeline."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin

from .checkpoints import read_json
from .folder import load_model
from .hub import fetch, is_hub_id

_CLASSES = {cls.__name__: cls for cls in (AutoencoderKL, AutoencoderTiny)}
# TAESD's authors trained one for each latent space.
_TAESD = {False: "madebyollin/taesd", True: "madebyollin/taesdxl"}


def read_autoencoder(
    source: str | Path | torch.nn.Module,
    *,
    xl: bool,
    dtype: torch.dtype,
    allow_pickle: bool = False,
) -> ModelMixin:
    """An autoencoder from `"taesd"` (the hub's, for SD or SDXL), a folder, a hub id or a module.

    A module is taken as it is, save for its dtype.

    Raises:
        FileNotFoundError, ValueError: one line that names what is wrong.
    """
    if isinstance(source, torch.nn.Module):
        if not isinstance(source, tuple(_CLASSES.values())):
            raise ValueError(
                f"vae is a {type(source).__name__}: allowed is {' or '.join(_CLASSES)}"
            )
        return source.to(dtype)
    folder = Path(source).expanduser()
    name = _TAESD[xl] if str(source) == "taesd" else str(source)
    if not folder.is_dir() and is_hub_id(name):
        patterns = ["config.json", "diffusion_pytorch_model.safetensors"]
        patterns += ["diffusion_pytorch_model.bin"] if allow_pickle else []
        folder = fetch(name, patterns)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"vae '{source}': no folder with a config.json; allowed is 'taesd', such a folder, a "
            "hub id or a module"
        )
    class_name = read_json(folder / "config.json").get("_class_name")
    if class_name not in _CLASSES:
        raise ValueError(f"{folder}: class {class_name}: allowed is {' or '.join(_CLASSES)}")
    return load_model(_CLASSES[class_name], folder, dtype, allow_pickle=allow_pickle)


def unscaled_encoder(vae: AutoencoderTiny, scaling_factor: float) -> AutoencoderTiny:
    """A copy whose encoder gives latents before scaling: `(B, C, H, W)` divided by the factor.

    InstructPix2Pix conditions on the unscaled `vae.encode(image).mode()` of `AutoencoderKL`. A tiny
    autoencoder's encoder gives latents already scaled (its own `scaling_factor` is 1), so in that
    pipeline the condition would be too small by the factor of the autoencoder it stands in for.
    The factor goes into the last convolution of the encoder; the decoder, which receives the UNet's
    scaled latents, stays as it is.
    """
    vae = copy.deepcopy(vae)
    last = vae.encoder.layers[-1]
    with torch.no_grad():
        last.weight.div_(scaling_factor)
        if last.bias is not None:
            last.bias.div_(scaling_factor)
    return vae
