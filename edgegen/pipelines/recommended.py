"""How a model is meant to be sampled from: `sampling.json` beside its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import assets
from .checkpoints import read_json

FILE = "sampling.json"
_LEAST = {"steps": 1, "guidance": 0, "image_guidance": 0}


def checked_sampling(settings: Mapping[str, Any], where: str) -> dict[str, float]:
    """Settings of a `sampling.json`: `steps` (a whole number), `guidance`, `image_guidance`.

    None stands for what is not said, and is left out.

    Raises ValueError for other keys and values; `where` names them.
    """
    found = {key: value for key, value in settings.items() if value is not None}
    for key, value in found.items():
        if key not in _LEAST:
            raise ValueError(f"{where}: unknown key {key!r}; allowed: {', '.join(_LEAST)}")
        kinds = int if key == "steps" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= _LEAST[key]:
            raise ValueError(f"{where}: {key}={value}: must be a number from {_LEAST[key]}")
    return found


def write_sampling(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `sampling.json` into a pipeline's folder. Raises as `checked_sampling`."""
    text = json.dumps(checked_sampling(settings, FILE), indent=2) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def read_sampling(source: str | Path | None) -> dict[str, float]:
    """What the folder of a model, or an embedded model by name, says; {} where it says nothing.

    Raises ValueError where the file is damaged, or as `checked_sampling`.
    """
    if source is None:
        return {}
    known = str(source) in assets.model_names()
    folder = assets.model_folder(str(source)) if known else Path(source).expanduser()
    path = folder / FILE
    return checked_sampling(read_json(path), str(path)) if path.is_file() else {}


def sampling_of(pipe: Any) -> dict[str, float]:
    """`read_sampling` of the folder that a diffusers pipeline was loaded from."""
    return read_sampling(pipe.config.get("_name_or_path"))
