"""Networks from their configs alone: no weights, and on `meta` no memory either."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import assets
from .checkpoints import read_json
from .hub import fetch, is_hub_id

# Class → the name of such a component in a diffusers pipeline.
_CLASSES = {
    "UNet2DConditionModel": "unet",
    "UNetSpatioTemporalConditionModel": "unet",
    "AutoencoderKL": "vae",
    "AutoencoderKLTemporalDecoder": "vae",
    "AutoencoderTiny": "vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
    "CLIPVisionModelWithProjection": "image_encoder",
}
# Components of a pipeline that are no networks, or that it runs as an afterthought.
_IGNORED = re.compile(r"(tokenizer|scheduler|feature_extractor|image_processor|safety_checker).*")
# Enough of a hub repository to know its networks.
_CONFIGS = ("model_index.json", "config.json", "*/config.json")


@dataclass(frozen=True)
class Architecture:
    """The networks of a text-to-image, editing or image-to-video pipeline, as plain configs.

    Attributes:
        name: what to call it.
        components: component name → its diffusers or transformers config, with `_class_name`.
        height, width: pixels that it makes by default; None where nothing says so.
        branches: UNet evaluations a step with classifier-free guidance.
        frames: frames of a clip, for a video model.
    """

    name: str
    components: dict[str, dict[str, Any]] = field(repr=False)
    height: int | None = None
    width: int | None = None
    branches: int = 2
    frames: int | None = None

    def build(self, device: str = "meta", seed: int = 0) -> dict[str, nn.Module]:
        """All components; see `build`."""
        return {name: build(config, device, seed) for name, config in self.components.items()}


def build(config: Mapping[str, Any], device: str = "meta", seed: int = 0) -> nn.Module:
    """The network that a config describes, in eval mode.

    Args:
        config: keys of a diffusers or transformers `config.json`, with the class in `_class_name`.
        device: "meta" for shapes only; elsewhere weights are random and depend on `seed` alone.

    Raises:
        ValueError: a class that is none of those known here, or settings that it refuses.
    """
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"unknown architecture {name}: known are {', '.join(_CLASSES)}")
    devices = [] if device in ("meta", "cpu") else [device]
    try:
        with torch.random.fork_rng(devices), torch.device(device):
            torch.manual_seed(seed)
            module = _construct(name, settings)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"cannot build {name}: {error}") from error
    # Some layers of diffusers make their parameters by a constructor that ignores the device.
    return module.to(device).eval()


def _construct(name: str, settings: dict[str, Any]) -> nn.Module:
    if not name.startswith("CLIP"):
        import diffusers

        return getattr(diffusers, name).from_config(settings)
    import transformers

    half = "Vision" if "Vision" in name else "Text"
    # Of a pipeline's config.json, what is about loading and not about the network.
    loading = ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")
    known = {key: value for key, value in settings.items() if key not in loading}
    return getattr(transformers, name)(getattr(transformers, f"CLIP{half}Config")(**known))


def architecture(model: Mapping[str, Any]) -> Architecture:
    """Architecture of a `configs/model/NAME.yaml`: its `components`, or else what `source` holds.

    A height, width, `branches` or `frames` in `model` wins over the source's own.
    """
    name = str(model.get("name") or "custom")
    components = {key: dict(c) for key, c in (model.get("components") or {}).items() if c}
    if components:
        read = Architecture(name, components, *_default_size(components))
    elif model.get("source"):
        read = read_architecture(str(model["source"]))
    else:
        raise ValueError(f"model {name}: needs a source or components")
    return Architecture(
        name,
        read.components,
        model.get("height") or read.height,
        model.get("width") or read.width,
        model.get("branches") or read.branches,
        model.get("frames") or read.frames,
    )


def read_architecture(source: str) -> Architecture:
    """Architecture of an embedded model, a local folder or a hub id; weights are not read.

    A folder or hub repository holds a pipeline (`model_index.json`) or one network (`config.json`).

    Raises:
        FileNotFoundError: no such folder, no config in it, or no network for a hub id.
        ValueError: a file instead of a folder, a hub id that the hub does not know, a network of
            a class that is not known here.
    """
    folder = _folder(source)
    index: dict[str, Any] = {}
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        components = _pipeline(folder, index)
    elif (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        config["_class_name"] = _class_name(config)
        components = {_CLASSES.get(config["_class_name"], "unet"): config}
    else:
        raise FileNotFoundError(f"{source}: holds neither model_index.json nor config.json")
    for name, config in components.items():
        if config["_class_name"] not in _CLASSES:
            raise ValueError(
                f"{source}: {name} is a {config['_class_name']}; known are {', '.join(_CLASSES)}"
            )
    edits = "InstructPix2Pix" in str(index.get("_class_name"))
    frames = components.get("unet", {}).get("num_frames")
    return Architecture(
        source, components, *_default_size(components), branches=3 if edits else 2, frames=frames
    )


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if source in assets.model_names():
        return assets.model_folder(source)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{source}: is a file; architectures are read from folders and hub ids")
    if is_hub_id(source):
        return fetch(source, _CONFIGS)
    names = ", ".join(assets.model_names()) or "none in this copy"
    raise FileNotFoundError(
        f"{source}: no such folder, and neither a hub id nor an embedded model ({names})"
    )


def _pipeline(folder: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    components = {}
    for name, entry in index.items():
        names_class = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
        if name.startswith("_") or not names_class or _IGNORED.fullmatch(name):
            continue
        path = folder / name / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, but named in model_index.json")
        components[name] = read_json(path) | {"_class_name": entry[1]}
    if not components:
        raise ValueError(f"{folder / 'model_index.json'}: names no network")
    return components


def _class_name(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name") or (config.get("architectures") or ["nothing known"])[0])


def vae_factor(components: Mapping[str, Mapping[str, Any]]) -> int:
    """Pixels a latent value spans in each direction; 8 without an autoencoder to say so."""
    vae = components.get("vae", {})
    stages = vae.get("encoder_block_out_channels") or vae.get("block_out_channels")
    return 2 ** (len(stages) - 1) if stages else 8


def _default_size(components: Mapping[str, Mapping[str, Any]]) -> tuple[int | None, int | None]:
    size = components.get("unet", {}).get("sample_size")
    if size is None:
        size = components.get("vae", {}).get("sample_size")
        return size, size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    factor = vae_factor(components)
    return height * factor, width * factor
