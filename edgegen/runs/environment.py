"""What a result depends on beside its settings: the code, the packages, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_SOURCES = ("edgegen", "configs", "scripts", "experiments", "pyproject.toml")


def git_state(folder: str | Path | None = None) -> dict[str, Any]:
    """The commit of the code in `folder` (default: this package), and how it differs from it.

    Returns `sha`, `dirty` and, where dirty, `diff_sha256`: the hash of `git diff HEAD` and of the
    source files that git does not know yet. Where the code is no git checkout (an installed
    wheel), `sha` is None and `reason` says why. This package's own is read once a process: that is
    the code that runs.
    """
    return dict(_own_state()) if folder is None else _git_state(Path(folder), own=False)


@lru_cache(maxsize=1)
def _own_state() -> dict[str, Any]:
    return _git_state(Path(__file__).resolve().parents[1], own=True)


def _git_state(package: Path, own: bool) -> dict[str, Any]:
    def git(*arguments: str) -> bytes:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, check=True, timeout=60
        ).stdout

    try:
        root = Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n")))
        sha = git("rev-parse", "HEAD").decode().strip()
        if own:  # a virtual environment inside somebody else's checkout is not ours
            git("ls-files", "--error-unmatch", "__init__.py")
        package = root
        diff = git("diff", "HEAD", "--binary", "--no-ext-diff")
        listed = git("ls-files", "--others", "--exclude-standard", "-z", "--", *_SOURCES)
        new = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    except (OSError, subprocess.SubprocessError) as error:
        return {"sha": None, "dirty": None, "reason": f"no git checkout ({type(error).__name__})"}
    if not diff and not new:
        return {"sha": sha, "dirty": False}
    digest = hashlib.sha256(diff)
    for name in sorted(new):
        path = root / name
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return {"sha": sha, "dirty": True, "diff_sha256": digest.hexdigest()}


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Version of Python, of this package and of every package it depends on that is installed."""
    names = ["edgegen"]
    try:
        required = metadata.requires("edgegen") or []
    except metadata.PackageNotFoundError:
        required = []
    for line in required:
        match = re.match(r"[A-Za-z0-9._-]+", line)
        if match and not re.search(r"extra == .(dev|build).", line):
            names.append(match.group())
    versions = {"python": platform.python_version()}
    for name in dict.fromkeys(names):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return versions


def machine() -> dict[str, Any]:
    """Operating system, processor and cores; torch's threads and GPU where torch is in use."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits, computed once as long as the file does not change."""
    real = Path(path).resolve()
    stat = real.stat()
    return _sha256(str(real), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """SHA-256 of this package's own Python files, as 16 hex digits.

    Unlike a commit it does not change with a README or a result that is committed, and it is there
    where the package is installed without git. Read once a process: that is the code that runs.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
