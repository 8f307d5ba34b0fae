"""`python scripts/build_emoji.py packages=DIR`: the emoji dataset from its sources."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from ..assets import file_sha256
from ..data.building import build_emoji, check_sources, fetch_packages, tarballs
from ..runs.record import Run
from ._main import command
from ._numbers import flag


@command("build_emoji", free_text=("packages", "output"))
def main(cfg: DictConfig, run: Run) -> None:
    """Fetch the packages where asked, draw every picture, and write the file."""
    packages = Path(cfg.packages).expanduser()
    fetch = flag(cfg, "fetch")
    missing = [path for path in tarballs(packages) if not path.is_file()]
    if missing and not fetch:
        raise FileNotFoundError(f"{missing[0]}: no such package; get it with fetch=true")
    if missing:
        fetch_packages(packages)
    check_sources(packages)
    output = Path(cfg.output).expanduser() if cfg.output else run.dir / "emoji.npz"
    output.parent.mkdir(parents=True, exist_ok=True)
    for path in tarballs(packages):
        run.used_file(path)
    counts = build_emoji(packages, output)
    for style, kinds in counts.items():
        run.log({f"emoji/{style}_{kind}": count for kind, count in kinds.items()})
    run.log({"emoji/bytes": output.stat().st_size})
    digest = file_sha256(output)
    run.info(output={"path": str(output), "sha256": digest})
    print(f"{digest}  {output}")
