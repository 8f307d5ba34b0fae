"""The rows of a comparison: which methods, with which settings, under which names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..api import Method, apply
from ..runs.comparison import PLAIN, TRUTH, check_label
from ._arguments import options
from ._methods import calibrate_as_sampled


@dataclass(frozen=True)
class Compared:
    """One row: methods that work together, each with all its options, as configured and as made."""

    configs: dict[str, dict[str, Any]]
    methods: dict[str, Method]

    def text(self) -> str:
        """The settings, to read."""
        parts = []
        for name, config in self.configs.items():
            settings = (f"{key} {json.dumps(value)}" for key, value in _options(config).items())
            parts.append(" · ".join([name, *settings]))
        return " + ".join(parts) or "the plain model"


def compared(cfg: DictConfig) -> dict[str, Compared]:
    """The rows that `methods` names, the plain model among them, from the settings in `method`.

    Raises ValueError, naming what is not allowed and what is.
    """
    calibrate_as_sampled(cfg)
    known = {
        str(name): OmegaConf.to_container(config, resolve=True)
        for name, config in (cfg.get("method") or {}).items()
    }
    given = cfg.methods
    entries = list(given) if isinstance(given, ListConfig) else [given]
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries:
        label, configs = _row(entry, known)
        if label in rows:
            raise ValueError(f"methods: two rows are named {label}; give each a name of its own")
        rows[label] = configs
    if not rows:
        raise ValueError(f"methods=[]: give at least one of {_names(known)}")
    if PLAIN not in rows:
        rows = {PLAIN: {}, **rows}
    return {
        label: Compared(configs, {name: instantiate(each) for name, each in configs.items()})
        for label, configs in rows.items()
    }


def check_fit(pipe: DiffusionPipeline, rows: Mapping[str, Compared]) -> None:
    """Raise ValueError or FileNotFoundError for methods that the model cannot take, naming them."""
    for label, row in rows.items():
        try:
            with apply(pipe, row.methods):
                pass
        except (ValueError, FileNotFoundError) as error:
            missing = isinstance(error, FileNotFoundError)
            kind = FileNotFoundError if missing else ValueError
            raise kind(f"methods: {label}: {error}") from error


def _row(entry: Any, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        if entry == PLAIN:
            return PLAIN, {}
        return entry, {entry: _known(entry, known)}
    if not isinstance(entry, DictConfig) or len(entry) != 1:
        raise ValueError(
            f"methods: {_plain(entry)} is neither the name of a method nor one "
            "{ROW: {METHOD: {OPTION: VALUE}}}; methods are " + _names(known)
        )
    ((label, methods),) = entry.items()
    label = str(label)
    if label in (PLAIN, TRUTH) or label in known:
        raise ValueError(f"methods: {label} is taken; name the row with other settings otherwise")
    try:
        check_label(label)
    except ValueError as error:
        raise ValueError(f"methods: {error}") from error
    if not isinstance(methods, DictConfig) or not methods:
        raise ValueError(f"methods: {label}: give its methods, as in {{METHOD: {{OPTION: VALUE}}}}")
    return label, {
        str(name): _changed(label, str(name), changes, known) for name, changes in methods.items()
    }


def _known(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    if name not in known and name in options("method"):
        both = ",".join([*known, name])
        raise ValueError(f"methods: {name} is not at hand: give 'method=[{both}]' as well")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"methods: no method {name!r}{meant}; allowed: {_names(known)}")
    if not isinstance(known[name], dict) or "_target_" not in known[name]:
        raise ValueError(f"method.{name}: no such method to set; allowed: {_names(known)}")
    return dict(known[name])


def _changed(label: str, name: str, changes: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    config = _known(name, known)
    if changes is not None and not isinstance(changes, DictConfig):
        raise ValueError(f"methods: {label}: {name} takes {{OPTION: VALUE}}, got {_plain(changes)}")
    for key, value in (changes or {}).items():
        if key not in _options(config):
            allowed = ", ".join(_options(config)) or "(none)"
            raise ValueError(f"methods: {label}: {name} has no option {key!r}; allowed: {allowed}")
        config[str(key)] = _merged(config[key], _plain(value))
    return config


def _merged(old: Any, new: Any) -> Any:
    """Of a mapping, only the given options change; one with other keys takes its place whole."""
    if isinstance(old, dict) and isinstance(new, dict) and new.keys() <= old.keys():
        return old | {key: _merged(old[key], value) for key, value in new.items()}
    return new


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _plain(value: Any) -> Any:
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    return value


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join([PLAIN, *known])
