"""What makes two runs one: the same command, settings, code, weights and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import assets
from .environment import code_version, sha256

# Settings that change where or how a result is kept, never the result.
IMMATERIAL = frozenset({"output_dir", "resume", "log_looks"})
# The same at any depth: folders that keep what would else be computed again.
_CACHES = frozenset({"cache", "store"})
_LONGEST_PATH = 1024
# Embedded things that are used without their files being named.
_USED = ("data", "emoji-judge", "adaptors", "animated", "clips")
# Settings that name weights or data.
_INPUTS = frozenset(
    {"source", "config", "tokenizer", "vae", "images", "reference", "clip", "backbone", "subject"}
    | {"predictor", "spec", "judge", "renderer"}
)


def input_files(
    settings: Mapping[str, Any], takes: Callable[[Path], bool] = lambda path: True
) -> dict[str, str]:
    """Hashes of the weights and data that the settings name: dotted key → SHA-256.

    An embedded model, a file, and a folder (all files below it that are not hidden) are hashed;
    a hub id is not, and counts by its name and nothing else. `takes` says which files and folders
    count.
    """
    found: dict[str, str] = {}
    for key, value in _leaves(_material(settings), ""):
        if value in assets.model_names():
            found[key] = _folder_sha256(assets.ROOT / value)
            continue
        path = _path(value)
        if path is None or not takes(path):
            continue
        if path.is_file():
            found[key] = sha256(path)
        elif path.is_dir() and ("/" in value or _names_input(key)):
            found[key] = _folder_sha256(path)
    return found


def run_id(
    command: str,
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, str] | None = None,
    code: str | None = None,
) -> str:
    """A word of 16 letters and digits that is equal for runs that must give equal results, only.

    Args:
        command: its name.
        settings: plain and resolved. `IMMATERIAL` ones and folders of caches are left out, and no
            order of keys counts.
        inputs: as by `input_files`, which is the default.
        code: as by `code_version`, which is the default.
    """
    content = {
        "command": command,
        "settings": _material(settings),
        "inputs": dict(input_files(settings) if inputs is None else inputs),
        "code": code_version() if code is None else code,
        "embedded": _embedded(),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    # The letter keeps it from being read as a number.
    return "r" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:15]


def _names_input(key: str) -> bool:
    """Whether a setting's value is a folder even where it looks like a plain word."""
    return key.rpartition(".")[2] in _INPUTS


def _material(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _without_caches({k: v for k, v in settings.items() if k not in IMMATERIAL})


def _without_caches(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _without_caches(v) for k, v in node.items() if k not in _CACHES}
    return [_without_caches(each) for each in node] if isinstance(node, list | tuple) else node


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")
    elif isinstance(node, str):
        yield path, node


def _path(value: str) -> Path | None:
    if not value or len(value) > _LONGEST_PATH or "\n" in value or "\0" in value:
        return None
    try:
        path = Path(value).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):
        return None


@lru_cache(maxsize=1)
def _embedded() -> dict[str, str]:
    """The lists of checksums of what is used without its file being named."""
    lists = (assets.ROOT / name / assets.SUMS for name in _USED)
    return {path.parent.name: sha256(path) for path in lists if path.is_file()}


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256(path)}\0".encode())
    return digest.hexdigest()
