"""Reading specs: those that come with the package, files, and what people type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .spec import ActivationSpec, CalibrationSpec, Spec, WeightSpec, changed, check_keys, texts

_TARGET = "edgegen.quantization.quantized"


def parse_spec(spec: Any = None, **settings: Any) -> Spec:
    """A spec from what people write.

    Args:
        spec: a `Spec`, a mapping, the path of a YAML file, or the name of a file of
            `configs/method` such as `w4a8`.
        settings: fields of `Spec` that differ from it, nested ones as mappings.

    Raises:
        ValueError, FileNotFoundError: one line that names the field and what is allowed.
    """
    if isinstance(spec, str | Path):
        spec = _read(spec)
    base = spec if isinstance(spec, Spec) else _merged(Spec(), spec or {})
    return _merged(base, settings)


def presets() -> dict[str, Path]:
    """Name → file of the specs that come with the package."""
    folder = files(f"{__package__.split('.')[0]}.configs") / "method"
    found = {Path(str(each)).stem: Path(str(each)) for each in folder.iterdir()}
    return {
        name: path
        for name, path in sorted(found.items())
        if path.suffix == ".yaml" and _is_spec(path.read_text(encoding="utf-8"))
    }


def _is_spec(text: str) -> bool:
    # A file that asks for another one with `spec` is none itself.
    return f"_target_: {_TARGET}\n" in text and "\nspec:" not in text


def _read(source: str | Path) -> dict[str, Any]:
    named = presets()
    path = named.get(str(source), Path(source))
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"spec '{source}' is unknown: allowed are {', '.join(named)} or a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(content).__name__}")
    return {key: value for key, value in content.items() if not str(key).startswith("_")}


def _merged(base: Spec, changes: Mapping[str, Any]) -> Spec:
    names = [each.name for each in fields(Spec)]
    check_keys("", changes, names)
    made: dict[str, Any] = {}
    for name, value in changes.items():
        old = getattr(base, name)
        if isinstance(old, WeightSpec | ActivationSpec | CalibrationSpec):
            made[name] = changed(name, old, value)
        elif isinstance(old, tuple):
            made[name] = texts(name, value)
        else:
            made[name] = value
    return replace(base, **made)
