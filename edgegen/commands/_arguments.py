"""What is typed on the command line, made safe for Hydra's grammar."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

_OVERRIDE = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][\w.@/]*)=(?P<value>.*)", re.DOTALL)
_OPEN = re.compile(r"method\.\w+\.layers")  # a mapping whose keys are of the user's choice
_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def rewrite(arguments: Sequence[str], free_text: Iterable[str], name: str) -> list[str]:
    """The arguments as Hydra should read them.

    - The value of a free-text key is taken literally, whatever is in it: `prompts=a, b=[c]` is one
      text. A JSON or Python list of quoted strings, `prompts=["a", "b"]`, is a list of texts (in
      a shell: `'prompts=["a", "b"]'`), and `prompts=null` is nothing. So free text is never swept.
    - `output_dir` is taken literally but for interpolations such as `${seed}`.
    - `method.w4a8.layers={unet.up_blocks.*: {…}}` may have keys that no config knows.
    - `model=X`, where X is no option of the group `model` but a path or a hub id, becomes
      `model=custom model.source=X`.
    """
    keys = set(free_text)
    rewritten: list[str] = []
    models = [argument for argument in arguments if argument.startswith("model=")]
    for argument in arguments:
        if argument in models[:-1]:
            continue  # the last one counts, and none of another's source
        match = None if argument.startswith("-") else _OVERRIDE.fullmatch(argument)
        key, value = (match["key"], match["value"]) if match else ("", "")
        bare = key.lstrip("+")
        if match and bare in keys:
            rewritten.append(f"{key}={_literal(value)}")
        elif match and bare == "output_dir":
            rewritten.append(f"{key}={quoted(value, interpolate=True)}")
        elif match and key == bare and _OPEN.fullmatch(bare):
            rewritten.append(f"++{argument}")
        elif match and bare == "model" and _is_source(value):
            rewritten += [f"{key}=custom", f"model.source={quoted(value)}"]
        else:
            rewritten.append(argument)
    return rewritten + _quiet(rewritten, name)


def quoted(text: str, interpolate: bool = False) -> str:
    """`text` as a quoted string of Hydra's grammar that composes to exactly `text`.

    OmegaConf would read `${`; unless `interpolate`, it is escaped.
    """
    if not interpolate:
        # Backslashes just before an escaped `${` are escapes to OmegaConf: double those too.
        text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    # Hydra reads backslashes as escapes only where they stand before a quote or at the end.
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{text}'"


def _literal(value: str) -> str:
    if value == "null":
        return value
    texts = _list_of_texts(value)
    if texts is None:
        return quoted(value)
    return "[" + ",".join(quoted(text) for text in texts) + "]"


def _list_of_texts(value: str) -> list[str] | None:
    if not (value.strip().startswith("[") and value.strip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
    return None


def _is_source(value: str) -> bool:
    """Whether the value of `model=` names weights rather than an option of the group."""
    if not value or value in options("model"):
        return False
    looks = any(mark in value for mark in "/\\") or value.endswith(_WEIGHTS)
    return looks or Path(value).expanduser().exists()


def options(group: str) -> list[str]:
    """The options of a config group that ship with the package, sorted; `a/b` for nested ones."""
    try:
        return sorted(_options(resources.files("edgegen.configs") / group))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _options(folder: Traversable) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.name.endswith(".yaml"):
            yield entry.name[:-5]
        elif entry.is_dir() and not entry.name.startswith("_"):
            yield from (f"{entry.name}/{inner}" for inner in _options(entry))


def _quiet(arguments: Sequence[str], name: str) -> list[str]:
    """Hydra's own folders, logs and callbacks, off unless asked for on the command line."""
    defaults = {
        "hydra/job_logging": "none",
        "hydra/hydra_logging": "none",
        "hydra.output_subdir": "null",
        "hydra.run.dir": ".",
        "hydra.sweep.dir": "${output_dir}",
        "hydra.job.name": name,
    }
    given = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    return [f"{key}={value}" for key, value in defaults.items() if key not in given]
