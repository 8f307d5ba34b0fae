"""English text that every installation has: the docstrings of installed packages."""

from __future__ import annotations

import ast
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import metadata, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .modules import StreamDataModule, Views
from .stream import Stream

END = "<|end|>"  # of a docstring
SHORTEST = 200  # characters of a docstring
REPEATED = 80  # characters from which a paragraph is kept once
HELD_OUT = 32  # one file of so many


def docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """(path within `root`, docstring) of all modules, classes and functions but those of tests.

    The files are read, never run.
    """
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if {"tests", "testing"} & set(place.parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= SHORTEST:
                    yield place.as_posix(), text


def split_texts(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Docstrings to train on, and those of the files held out; no paragraph is in both, or twice.

    Raises:
        ValueError: a package that is not installed, or holds no text.
    """
    kept: list[tuple[bool, str]] = []
    for package in packages:
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"packages={package}: no such package is installed")
        for place, text in docstrings(Path(spec.submodule_search_locations[0])):
            held_out = zlib.crc32(f"{package}/{place}".encode()) % HELD_OUT == 0
            kept.append((held_out, text))
    seen: set[str] = set()
    train, test = (
        [once for flag, text in kept if flag == held_out and (once := _once(text, seen))]
        for held_out in (False, True)
    )
    if not train or not test:
        raise ValueError(f"packages={list(packages)}: hold too little text")
    return train, test


def _once(text: str, seen: set[str]) -> str:
    """Without the longer paragraphs that were there before."""
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) < REPEATED or paragraph not in seen:
            kept.append(paragraph)
            seen.add(paragraph)
    joined = "\n\n".join(kept)
    return joined if len(joined) >= REPEATED else ""


def text_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair tokenizer of so many tokens; token 0 ends a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


class DocumentationData(StreamDataModule):
    """Windows (length + 1,) of token numbers, for training language models.

    Each docstring is followed by `END`. Training windows begin anywhere, those of the validation
    set `text` lie side by side.

    Args:
        packages: whose docstrings are the text.
        length: tokens that a model predicts in a window.
        vocabulary: of the tokenizer.
        tokenizer_folder: of one that is there; None trains one on the training text.

    Raises:
        ValueError, FileNotFoundError: a package or tokenizer that is not there.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        packages: Sequence[str] = ("numpy", "scipy"),
        length: int = 128,
        vocabulary: int = 1024,
        tokenizer_folder: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.packages, self.length, self.vocabulary = tuple(packages), length, vocabulary
        self.tokenizer: PreTrainedTokenizerFast | None = None
        if tokenizer_folder is not None:
            folder = Path(tokenizer_folder).expanduser()
            if not (folder / "tokenizer.json").is_file():
                raise FileNotFoundError(
                    f"tokenizer_folder={tokenizer_folder}: no tokenizer.json there"
                )
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.about: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        train, test = split_texts(self.packages)
        if self.tokenizer is None:
            self.tokenizer = text_tokenizer(train, self.vocabulary)
        self._train, held_out = self._tokens(train), self._tokens(test)
        self.train_set = Stream(list(range(len(self._train) // self.length)), self.view, self.seed)
        places = range(0, len(held_out) - self.length, self.length)
        windows = [held_out[place : place + self.length + 1] for place in places]
        self.validation_sets["text"] = Views(windows, torch.from_numpy)
        text = END.join([*train, END, *test])
        self.about = {
            "packages": {name: _origin(name) for name in self.packages},
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "train_tokens": len(self._train),
            "held_out_tokens": len(held_out),
            "held_out_characters": sum(map(len, test)),
        }

    def view(self, place: int, rng: np.random.Generator) -> Tensor:
        start = place * self.length + int(rng.integers(self.length))
        start = min(start, len(self._train) - self.length - 1)
        return torch.from_numpy(self._train[start : start + self.length + 1])

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        assert self.tokenizer is not None
        end = self.tokenizer.eos_token_id
        found = self.tokenizer.backend_tokenizer.encode_batch(list(texts))
        return np.array([token for text in found for token in (*text.ids, end)], dtype=np.int64)


def _origin(package: str) -> dict[str, str]:
    """Version and licence of what a package was installed from."""
    name = packages_distributions()[package][0]
    told: Any = metadata(name)
    kinds = [each for each in told.get_all("Classifier") or [] if each.startswith("License ::")]
    licence = told.get("License-Expression") or "; ".join(kinds)
    return {"version": version(name), "licence": licence}
