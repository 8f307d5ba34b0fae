"""Files of weights and configurations, read without ever running what they hold."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
WEIGHT_ENDINGS = (".safetensors", *PICKLE_ENDINGS)


def read_weights(path: Path, allow_pickle: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file or, if allowed, of a pickle.

    A pickle is read with `weights_only=True`: whatever else it holds is refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix in PICKLE_ENDINGS:
        if not allow_pickle:
            raise ValueError(
                f"{path}: a pickle, which can run code when read; convert it to safetensors, or "
                "pass allow_pickle=True"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{path}: not readable as tensors only ({one_line(error)[:120]}…): convert it to "
                "safetensors"
            ) from error
        while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = {**content["state_dict"], "global_step": content.get("global_step")}
        content = content if isinstance(content, dict) else {}
        step = content.pop("global_step", None)
        weights = {key: value for key, value in content.items() if torch.is_tensor(value)}
        if step is not None:
            weights["global_step"] = torch.as_tensor(step)
        return weights, {}
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def check_safetensors(path: Path) -> None:
    """`ValueError` where a file's header and length do not fit (truncated, or another format)."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or no safetensors file ({one_line(error)})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` names the file where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300]
