"""Single parts of a pipeline from folders: what trainings begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ..assets import model_folder, model_names
from .checkpoints import read_json
from .tokenizers import load_tokenizer

# What a noise schedule is made of; the rest of a scheduler's configuration says how to sample.
_SCHEDULE = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr", "steps_offset"),
)


def _folder(folder: str | Path, component: str) -> Path:
    """The folder of a part: its own, or a pipeline's, or an embedded model's by name."""
    if str(folder) in model_names():
        folder = model_folder(str(folder))
    folder = Path(folder).expanduser()
    return folder / component if (folder / "model_index.json").is_file() else folder


def _part(kind: Any, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no {kind.__name__} there (no config.json)")
    part = kind.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    return part.float()


def autoencoder(folder: str | Path) -> AutoencoderKL:
    """The AutoencoderKL in a folder, in a pipeline's, or of an embedded model; float32."""
    return _part(AutoencoderKL, _folder(folder, "vae"))


def unet(folder: str | Path) -> UNet2DConditionModel:
    """The UNet2DConditionModel in a folder, in a pipeline's, or of an embedded model; float32."""
    return _part(UNet2DConditionModel, _folder(folder, "unet"))


def clip(folder: str | Path) -> CLIPModel:
    """The CLIPModel in a folder, float32."""
    return _part(CLIPModel, Path(folder).expanduser())


def text_encoder(folder: str | Path) -> CLIPTextModel | CLIPModel:
    """A text encoder, float32: of a pipeline, of an embedded model, or the CLIPModel around it."""
    own = _folder(folder, "text_encoder")
    config = own / "config.json"
    whole = config.is_file() and read_json(config).get("model_type") == "clip"
    return _part(CLIPModel if whole else CLIPTextModel, own)


def clip_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The CLIPTokenizer in a folder, in a pipeline's, or of an embedded model."""
    return load_tokenizer(_folder(folder, "tokenizer"))


def noise_schedule(folder: str | Path) -> DDPMScheduler:
    """The noise schedule and the prediction type that a model was trained with, for training.

    Args:
        folder: a pipeline, or an embedded model by name.

    Raises FileNotFoundError for a folder without a scheduler.
    """
    path = _folder(folder, "scheduler") / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, which would tell the noise schedule")
    found = {key: value for key, value in read_json(path).items() if key in _SCHEDULE}
    return DDPMScheduler(**found, clip_sample=False)
