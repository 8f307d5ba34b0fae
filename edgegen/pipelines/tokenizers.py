"""CLIP tokenizers: their folders, and those that a single file needs beside it."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import CLIPTokenizer

from .checkpoints import one_line
from .hub import fetch, is_hub_id

TOKENIZER_ID = "openai/clip-vit-large-patch14"


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in a folder; one-line errors."""
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder}: no tokenizer (vocab.json and merges.txt) in it")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        raise ValueError(f"{folder}: not readable as CLIPTokenizer: {one_line(error)}") from error


def clip_tokenizers(
    path: Path, family: str, configs: Path | None, given: str | Path | CLIPTokenizer | None
) -> dict[str, CLIPTokenizer]:
    """The tokenizers for the single file `path`, by component name.

    Args:
        family: `sd1`, `sd2` or `sdxl`.
        configs: diffusers folder whose tokenizers are used where none is given.
        given: a tokenizer, its folder or hub id; default the hub's `TOKENIZER_ID`.

    Raises:
        FileNotFoundError, ValueError: one line, also where it cannot be had without network.
    """
    names = ["tokenizer", "tokenizer_2"] if family == "sdxl" else ["tokenizer"]
    if given is None and configs is not None and (configs / "tokenizer").is_dir():
        return {name: load_tokenizer(configs / name) for name in names}
    if isinstance(given, str | Path):
        given = str(given)
        folder = Path(given).expanduser()
        if not folder.is_dir() and not is_hub_id(given):
            raise FileNotFoundError(
                f"tokenizer '{given}': no such folder; allowed is a folder with vocab.json and "
                "merges.txt, a hub id or a CLIPTokenizer"
            )
        first = load_tokenizer(folder if folder.is_dir() else _fetch_tokenizer(given))
    elif given is None:
        try:
            first = load_tokenizer(_fetch_tokenizer(TOKENIZER_ID))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: holds no tokenizer, and '{TOKENIZER_ID}' is neither cached nor "
                "reachable: pass tokenizer=FOLDER (with vocab.json and merges.txt)"
            ) from error
    else:
        first = given
    # OpenCLIP pads with token 0 ("!"), CLIP with its end token.
    padded = copy.deepcopy(first)
    padded.pad_token = padded.convert_ids_to_tokens(0)
    if family == "sdxl":
        return {"tokenizer": first, "tokenizer_2": padded}
    return {"tokenizer": padded if family == "sd2" else first}


def _fetch_tokenizer(repository: str) -> Path:
    return fetch(repository, ["vocab.json", "merges.txt", "tokenizer*.json", "special_tokens*"])
