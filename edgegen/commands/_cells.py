"""Cells of a sweep: runs of other commands, in this process, each in a folder named by its id."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ..runs.identity import run_id
from ..runs.locks import hold
from ..runs.record import Run, is_finished
from ._arguments import quoted, rewrite
from ._errors import explain
from ._main import check_targets

# These run others; one inside another would have no end.
_NOT_CELLS = ("experiment", "sweep", "report", "table")


@dataclass(frozen=True)
class Cell:
    """One run of a command: its name, resolved config and id, which also names its folder."""

    command: str
    config: DictConfig
    hydra: DictConfig
    overrides: tuple[str, ...]
    id: str

    @classmethod
    def of(cls, command: str, settings: Mapping[str, Any]) -> Cell:
        """The cell of a command with these settings, those of groups such as `method` included.

        Raises ValueError in one line where there is no such command or setting.
        """
        overrides = [f"{key}={_text(value, key)}" for key, value in settings.items()]
        config, hydra = _composed(command, overrides)
        if "output_dir" in config:
            config.output_dir = "output_dir"  # other settings may be made of it
        plain = _plain(config)
        return cls(command, config, hydra, tuple(overrides), run_id(command, plain))

    def run(self, root: Path, *, wait: bool = True) -> Path | None:
        """Run in `root/ID` unless a finished run is there; returns that folder.

        Only one process runs a cell at a time. With `wait` others wait for it and take what it
        made, else None is returned. What the command raises passes through.
        """
        folder = root / self.id
        if is_finished(folder):
            return folder
        with hold(root / ".claims" / self.id, wait=wait) as mine:
            if not mine:
                return None
            if not is_finished(folder):
                self._run(folder)
        return folder

    def _run(self, folder: Path) -> None:
        config = self.config.copy()
        if "output_dir" in config:
            config.output_dir = str(folder)
        plain = _plain(config)
        main = _command(self.command)
        with Run(folder, config=plain, overrides=self.overrides, command=self.command) as run:
            run.info(id=self.id)
            with (
                _hydra_config(self.hydra),
                open(run.dir / "output.txt", "w", encoding="utf-8") as shown,
                redirect_stdout(shown),
            ):
                main(config, run)


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return plain


@contextmanager
def _hydra_config(hydra: DictConfig) -> Iterator[None]:
    """Hydra's own config, which tells a command what was chosen of a group."""
    holder: Any = HydraConfig.instance()
    before, holder.cfg = holder.cfg, hydra
    try:
        yield
    finally:
        holder.cfg = before


def _composed(command: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """A command's config, and Hydra's own that belongs to it."""
    _check_name(command)
    outer = GlobalHydra.instance().hydra  # the command that we are in
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("edgegen.configs", job_name=command, version_base="1.3"):
            typed = [o for o in rewrite(overrides, (), command) if not o.startswith("hydra")]
            config = compose(command, typed, return_hydra_config=True)
        hydra = OmegaConf.masked_copy(config, "hydra")
        hydra.hydra._set_parent(None)
        with open_dict(config):
            del config["hydra"]
        check_targets(config)
        return config, hydra
    except Exception as error:
        line = explain(error, command)
        if line is None:
            raise
        raise ValueError(f"command {command}: {line}") from error
    finally:
        GlobalHydra.instance().clear()
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def _check_name(name: str) -> None:
    files = (entry.name for entry in resources.files("edgegen.configs").iterdir())
    names = sorted(file[:-5] for file in files if file.endswith(".yaml"))
    allowed = [each for each in names if each not in _NOT_CELLS]
    if name not in allowed:
        raise ValueError(f"command={name}: must be one of {', '.join(allowed)}")


def _command(name: str) -> Callable[[DictConfig, Run], None]:
    # Not before it runs: a sweep that is done needs none of what the command imports.
    return import_module(f"..{name}", __name__).main.__wrapped__


def _key(key: str) -> str:
    """A key of a mapping: Hydra's grammar takes none in quotes."""
    if not re.fullmatch(r"[\w/\-+.$%*@?|]+", key):
        raise ValueError(f"{key!r}: as a key, only letters, digits and /-+.$%*@?| are allowed")
    return key


def _text(value: Any, key: str) -> str:
    """A value as Hydra's grammar writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(each, key) for each in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(str(k))}:{_text(v, key)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        raise ValueError(f"{key}={value}: must be a text, number, list or mapping")
    return value if key == "model" else quoted(value)  # `rewrite` reads a model's path
