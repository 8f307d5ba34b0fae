"""The models that ship inside the package, and the checksums that guard them.

Each model is a folder `assets/NAME/` in the plain diffusers layout, with a file `SHA256SUMS`
in the format of `sha256sum` (`cd NAME && sha256sum -c SHA256SUMS` checks it without Python).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parent
SUMS = "SHA256SUMS"
_PICTURES = (".png", ".jpg", ".webp", ".svg")


def model_names() -> list[str]:
    """Names of the embedded models, sorted."""
    return sorted(index.parent.name for index in ROOT.glob("*/model_index.json"))


def model_folder(name: str) -> Path:
    """Folder of the embedded model `name`; its files are verified first.

    Raises:
        ValueError: unknown name, or a file that does not match its checksum.
        FileNotFoundError: a listed file, or the list itself, is missing.
    """
    if name not in model_names():
        raise ValueError(f"unknown model '{name}': embedded models are {', '.join(model_names())}")
    folder = ROOT / name
    verify(folder)
    return folder


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def for_people(path: Path) -> bool:
    """Whether a file in a model's folder is for reading only: model card, pictures, licence."""
    return path.suffix in (".md", *_PICTURES) or path.name.startswith(("LICENSE", "NOTICE"))


def write_sums(folder: str | Path) -> Path:
    """Write `SHA256SUMS` over every file that `verify` guards; returns its path."""
    folder = Path(folder)
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in _guarded(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return folder / SUMS


def verify(folder: str | Path) -> dict[str, str]:
    """Check a folder against its `SHA256SUMS`; returns file name -> sha256.

    Files for people (`for_people`) and hidden files are not guarded.

    Raises:
        FileNotFoundError: no `SHA256SUMS`, or a listed file is missing.
        ValueError: a malformed line, a checksum that differs, or a file that is not listed.
    """
    folder = Path(folder)
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(f"{folder}: no {SUMS}, so its files cannot be verified")
    listed: dict[str, str] = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"{folder / SUMS}: malformed line '{line[:80]}'")
        listed[name] = digest
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, but listed in {SUMS}")
        if (actual := file_sha256(folder / name)) != digest:
            raise ValueError(
                f"{folder / name}: sha256 is {actual[:12]}…, expected {digest[:12]}…: "
                "the file is damaged or was changed; install the package again"
            )
    if stray := sorted(set(_guarded(folder)) - set(listed)):
        raise ValueError(f"{folder / stray[0]}: not listed in {SUMS}")
    return listed


def _guarded(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and path.name != SUMS and not for_people(path) and not hidden:
            names.append(name.as_posix())
    return names
