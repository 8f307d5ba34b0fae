"""Writing a model that ships inside the package."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from ..assets import for_people, write_sums
from .recommended import write_sampling

# What transformers adds about the process that wrote the file.
_NOT_OF_THE_MODEL = ("is_local", "local_files_only")


def save_embedded(
    pipe: DiffusionPipeline, folder: str | Path, sampling: Mapping[str, Any] | None = None
) -> Path:
    """Write a pipeline as `edgegen/assets/NAME/` holds it; returns the folder.

    A plain diffusers folder with float16 safetensors and `SHA256SUMS`, which diffusers'
    `from_pretrained` loads as float32 without a warning. The pipeline is not changed. Files for
    people (`assets.for_people`) already in the folder stay; everything else in it is replaced, at
    once and only at the end.

    Args:
        sampling: how it is meant to be sampled from, see `recommended.checked_sampling`.

    Raises:
        ValueError: a safety checker is attached, or a weight does not fit float16.
    """
    folder = Path(folder)
    if getattr(pipe, "safety_checker", None) is not None:
        raise ValueError("save_embedded: detach the safety checker (pipe.safety_checker = None)")
    halves = {}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            halves[name] = _half(name, part)
    taken = inspect.signature(type(pipe).__init__).parameters
    parts = pipe.components
    flags = {key: value for key, value in pipe.config.items() if key in taken and key not in parts}
    if "requires_safety_checker" in taken:
        flags["requires_safety_checker"] = False  # or from_pretrained warns of its absence
    written = type(pipe)(**{**parts, **halves, **flags})
    with replaced_folder(folder) as new:
        written.save_pretrained(new, safe_serialization=True)
        for name in ("text_encoder", "text_encoder_2"):
            if (new / name).is_dir():
                _plain_text_encoder(new / name)
        for name in ("tokenizer", "tokenizer_2"):
            if (new / name).is_dir():
                # transformers 5 writes tokenizer.json alone; earlier ones read these two.
                written.components[name].backend_tokenizer.model.save(str(new / name))
                _edit(new / name / "tokenizer_config.json", drop=_NOT_OF_THE_MODEL)
        for path in new.rglob("*.json"):
            _edit(path, drop=("_name_or_path",))
        if isinstance(parts.get("vae"), AutoencoderTiny):
            # Set by diffusers itself, which warns of it on loading.
            _edit(new / "vae" / "config.json", drop=("block_out_channels",))
        if sampling is not None:
            write_sampling(new, sampling)
        write_sums(new)
    return folder


def save_embedded_clip(
    model: CLIPModel, tokenizer: CLIPTokenizer, settings: dict[str, Any], folder: str | Path
) -> Path:
    """Write a CLIP as `edgegen/assets/NAME/` holds it; returns the folder.

    A plain transformers folder with float16 safetensors, which loads as float32, its tokenizer,
    `settings` as `preprocessor_config.json`, and `SHA256SUMS`.

    Raises:
        ValueError: a weight does not fit float16.
    """
    folder = Path(folder)
    half: Any = _half("clip", model)
    with replaced_folder(folder) as new:
        half.save_pretrained(new)
        _edit(new / "config.json", dtype="float32")
        text = json.dumps(settings, indent=2) + "\n"
        (new / "preprocessor_config.json").write_text(text, encoding="utf-8")
        tokenizer.save_pretrained(new)
        tokenizer.backend_tokenizer.model.save(str(new))
        for name in ("config.json", "tokenizer_config.json"):
            _edit(new / name, drop=("_name_or_path", *_NOT_OF_THE_MODEL))
        write_sums(new)
    return folder


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write a model into, which takes the place of `folder` once it is whole.

    Files for people (`assets.for_people`) that lie in the old folder stay, everything else in it
    goes. After an error the old one is as it was.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        if folder.is_dir():
            for path in folder.iterdir():
                if path.is_file() and for_people(path):
                    shutil.copy2(path, new / path.name)
            folder.rename(Path(temporary) / "old")
        new.rename(folder)


def _half(name: str, module: torch.nn.Module) -> torch.nn.Module:
    half = copy.deepcopy(module).half()
    for key, value in half.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"save_embedded: {name}.{key} does not fit float16")
    return half


def _plain_text_encoder(folder: Path) -> None:
    # transformers loads the dtype that this names, diffusers always float32: with float16 here the
    # pipeline would mix the two and fail.
    _edit(folder / "config.json", dtype="float32")
    # Since transformers 5.6 CLIPTextModel has no inner `text_model`, but every version reads the
    # names of the published checkpoints.
    path = folder / "model.safetensors"
    weights = load_file(path)
    if not any(key.startswith("text_model.") for key in weights):
        weights = {f"text_model.{key}": value for key, value in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})


def _edit(path: Path, drop: tuple[str, ...] = (), **changes: str) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if changes or not content.keys().isdisjoint(drop):
        kept = {key: value for key, value in content.items() if key not in drop} | changes
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
