"""`python scripts/build_animated.py package=FILE`: animated drawings in several skin tones."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ..data.animated import write_animated
from ..runs.record import Run
from ._main import command
from ._numbers import whole_number


@command("build_animated", free_text=("package", "output"))
def main(cfg: DictConfig, run: Run) -> None:
    """Take the clips out of the package."""
    for key in ("subjects", "tones"):
        if not isinstance(cfg[key], ListConfig) or not cfg[key]:
            raise ValueError(f"{key}={cfg[key]}: must be a list")
    size, frames = whole_number(cfg, "size", 16), whole_number(cfg, "frames", 2)
    package = Path(cfg.package).expanduser()
    if not package.is_file():
        raise FileNotFoundError(f"package={package}: no such file; `npm pack` fetches it")
    output = Path(cfg.output).expanduser() if cfg.output else run.folder / "animated.npz"
    subjects, tones = ([str(each) for each in cfg[key]] for key in ("subjects", "tones"))
    count = write_animated(package, output, subjects, tones, size=size, frames=frames)
    run.used_file(package)
    run.log({"animated/clips": count})
    print(f"{output}: {count} clips")
