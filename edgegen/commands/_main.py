"""The contract of every command: options in, one record out, mistakes told in one line.

    @command("generate", free_text=("prompts", "prompts_file"))
    def main(cfg: DictConfig, run: Run) -> None:
        ...

makes `main` an entry point without arguments: `python scripts/generate.py steps=8` and
`edgegen-generate steps=8` read `configs/generate.yaml`, overridden by what was typed. The function
checks its settings, raising ValueError or FileNotFoundError with a line that names the option and
what is allowed, before it first touches `run`: until then nothing is written.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
import hydra._internal.hydra as hydra_internal
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import _locate, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..runs.record import Killed, Run
from ._arguments import rewrite
from ._errors import explain

Command = Callable[[DictConfig, Run], None]

# A config is not trusted code. It may name classes of these packages, and functions of ours alone.
_PACKAGES = (
    "accelerate",
    "diffusers",
    "edgegen",
    "lightning",
    "omegaconf",
    "torch",
    "torchao",
    "torchmetrics",
    "torchvision",
    "transformers",
)
# Within those, what starts programs, runs loaded code or writes files.
_DENIED = (
    "edgegen.commands",
    "edgegen.runs",
    "torch.distributed",
    "torch.jit",
    "torch.package",
    "torch.utils.cpp_extension",
)


class _Failed(BaseException):
    """Carries a command's error past Hydra, which would print lines of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _CheckedCallbacks(Callbacks):
    """Hydra builds what a config names under `hydra.callbacks` before any command can look."""

    def __init__(self, config: DictConfig | None = None) -> None:
        if config is not None:
            named = OmegaConf.select(config, "hydra.callbacks")
            check_targets(OmegaConf.create({"hydra": {"callbacks": named or {}}}))
        super().__init__(config)


class _Hydra(hydra_internal.Hydra):
    """Hydra without the second composition of every config, which asks for `hydra.mode` alone."""

    typed: Sequence[str] = ()  # of all overrides those that a person gave

    def get_mode(self, config_name: str | None, overrides: list[str]) -> Any:
        asked = any("hydra" in each for each in self.typed) or any(
            flag.startswith(("-cd", "--config-", "-cn", "-cp")) for flag in sys.argv[1:]
        )
        return super().get_mode(config_name, overrides) if asked else None


def command(name: str, free_text: Sequence[str] = ()) -> Callable[[Command], Callable[..., None]]:
    """Make `main(cfg, run)` the command that `configs/{name}.yaml` describes.

    Args:
        name: the config's name without `.yaml`; runs go to `outputs/{name}/DATE` by default.
        free_text: keys whose values are taken literally, see `_arguments.rewrite`.

    The entry point takes the arguments to read (default: the command line). It exits with 0, with
    2 and one line on stderr where the settings are at fault, with 130 or 143 where it was
    interrupted, and lets any other error through. `HYDRA_FULL_ERROR=1` shows tracebacks always.
    """

    def decorate(main: Command) -> Callable[..., None]:
        @functools.wraps(main)
        def entry(arguments: Sequence[str] | None = None) -> None:
            typed = list(sys.argv[1:] if arguments is None else arguments)
            verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
            error: BaseException
            try:
                return _launch(main, name, typed, free_text)
            except _Failed as failed:
                error = failed.error
            except (Exception, KeyboardInterrupt, Killed) as raised:
                error = raised
            if isinstance(error, KeyboardInterrupt):
                _exit(name, "interrupted", 130)
            if isinstance(error, Killed):
                _exit(name, "ended by SIGTERM", 143)
            line = None if verbose else explain(error, name, typed)
            if line is None:
                raise error
            _exit(name, f"error: {line}", 2)

        return entry

    return decorate


def _launch(main: Command, name: str, typed: list[str], free_text: Sequence[str]) -> None:
    flags, overrides = _separate(typed)
    script, *original = sys.argv

    def task(cfg: DictConfig) -> None:
        # Lightning starts further processes from sys.argv: they read what was typed, as we did.
        sys.argv = [script, *typed]
        try:
            _run(main, name, cfg, overrides)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise _Failed(error) from None

    launch = hydra.main(config_path="pkg://edgegen.configs", config_name=name, version_base="1.3")
    before = os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [script, *flags, *rewrite(overrides, free_text, name)]
    plain, hydra_internal.Hydra = hydra_internal.Hydra, _Hydra  # type: ignore[misc]
    _Hydra.typed = overrides
    hydra_internal.Callbacks = _CheckedCallbacks  # type: ignore[misc]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed by Hydra
    try:
        launch(task)()
    finally:
        sys.argv = [script, *original]
        hydra_internal.Hydra, _Hydra.typed = plain, ()  # type: ignore[misc]
        hydra_internal.Callbacks = Callbacks  # type: ignore[misc]
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _run(main: Command, name: str, cfg: DictConfig, overrides: list[str]) -> None:
    check_targets(cfg)
    folder = _folder(name, cfg)
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    config = {str(key): value for key, value in plain.items()}
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        overrides = list(HydraConfig.get().overrides.task)
    with _sigterm(), Run(folder, config=config, overrides=overrides, command=name) as run:
        main(cfg, run)


def _folder(name: str, cfg: DictConfig) -> Path:
    """The run's folder; also put into the config, so that `config.yaml` says it."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        folder = Path(HydraConfig.get().runtime.output_dir)  # output_dir/0, output_dir/1, …
    elif cfg.get("output_dir") is None:
        folder = Path("outputs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    else:
        folder = Path(str(cfg.output_dir)).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={folder}: must be a folder, and is a file")
    if "output_dir" in cfg:
        cfg.output_dir = str(folder)
    return folder


def check_targets(config: DictConfig) -> None:
    """Refuse a config whose `_target_`s lie outside the packages that this project uses.

    Both the written path and the place where the thing found there was defined must lie inside, so
    that `torch.os.system` is refused too. Raises ValueError.
    """
    for key, target in _targets(OmegaConf.to_container(config, resolve=False), ""):
        if isinstance(target, str) and "${" in target:
            target = OmegaConf.select(config, key)
        _check_target(key, str(target))


def _check_target(key: str, target: str) -> None:
    refused = f"{key}={target}: not allowed; a config may name classes of {', '.join(_PACKAGES)}"
    if not _inside(target):
        raise ValueError(refused)
    try:
        found = _locate(target)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{key}={target}: no such class or function ({reason})") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    kind = isinstance(found, type) or (callable(found) and home.startswith("edgegen."))
    if not (kind and _inside(home)):
        raise ValueError(refused)


def _inside(path: str) -> bool:
    denied = any(path == name or path.startswith(name + ".") for name in _DENIED)
    return path.partition(".")[0] in _PACKAGES and not denied


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield here, value
            else:
                yield from _targets(value, here)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _separate(typed: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags (`--multirun`, `--help`, …) and the overrides, wherever they stood."""
    known, unknown = get_args_parser().parse_known_intermixed_args(typed)
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]!r}: options are key=value, as in steps=8")
    return [word for word in typed if word not in known.overrides], known.overrides


@contextmanager
def _sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Killed("SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(name: str, line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"{name}: {line}", file=sys.stderr)
    raise SystemExit(code)
