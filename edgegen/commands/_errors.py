"""Errors that a user can mend, each told in one line that names the option and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ._arguments import options

_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    HydraException,
    OmegaConfBaseException,
)


def explain(error: BaseException, config_name: str, typed: Sequence[str] = ()) -> str | None:
    """One line for an error that the settings caused, or None for any other error.

    `typed` are the arguments, whose choices of configs tell which options are allowed.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # Hydra wraps whatever a constructor raised: a fault of ours stays a fault.
        return explain(error.__cause__, config_name, typed) or (
            _one_line(error) if isinstance(error.__cause__, TypeError | ImportError) else None
        )
    if not isinstance(error, _USER_ERRORS):
        return None
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: options are key=value; quote odd values: key='...'"
    for found in (error, error.__cause__):
        absent = isinstance(found, ConfigAttributeError | ConfigKeyError)
        if absent and found.full_key and "not in struct" in str(found):  # type: ignore[union-attr]
            return _unknown_key(found.full_key, config_name, typed)  # type: ignore[union-attr]
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        if "Missing mandatory value" in str(error):
            return f"{error.full_key} is required: give {error.full_key}=..."
        return f"{error.full_key}: {_one_line(error)}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return _one_line(error)


def _missing_option(error: MissingConfigException) -> str:
    wanted = error.missing_cfg_file or ""
    if "/" not in wanted:
        return _one_line(error)
    group, _, option = wanted.removesuffix(".yaml").partition("/")
    found = options(group) or sorted(error.options or [])
    allowed = ", ".join(found) or "none"
    also = ", or a folder, a .safetensors file or a hub id" if group == "model" else ""
    return f"{group}={option}: no such option{_near(option, found)}; allowed: {allowed}{also}"


def _unknown_key(key: str, config_name: str, typed: Sequence[str]) -> str:
    parent, _, last = key.rpartition(".")
    if key == "method":
        names = ", ".join(options("method"))
        return f"method: no method is in use; give method=[NAME] as well, NAME one of {names}"
    config = _defaults(config_name, typed)
    if parent and config is not None:
        config = OmegaConf.select(config, parent)
    if not isinstance(config, DictConfig):
        return f"unknown option {key!r}"
    allowed = [str(name) for name in config]
    where = f" of {parent}" if parent else ""
    return f"unknown option {key!r}{_near(last, allowed)}; allowed{where}: {', '.join(allowed)}"


def _defaults(config_name: str, typed: Sequence[str]) -> DictConfig | None:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [choice for each in typed if (choice := _choice(*each.partition("=")[::2]))]
    try:
        with initialize_config_module("edgegen.configs", version_base="1.3"):
            return compose(config_name, choices)
    except Exception:  # only the list of allowed names is lost
        return None


def _choice(group: str, typed: str) -> str | None:
    """A choice of configs as Hydra takes it: a model that is a path is one of `custom`."""
    allowed = options(group)
    names = [name.strip() for name in typed.strip("[]").split(",") if name.strip()]
    if allowed and names and all(name in allowed for name in names):
        return f"{group}={typed}"
    return "model=custom" if group == "model" and names else None


def _near(name: str, allowed: list[str] | tuple[str, ...] | object) -> str:
    names = [str(option) for option in allowed] if isinstance(allowed, list | tuple) else []
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _one_line(error: BaseException, limit: int = 600) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
