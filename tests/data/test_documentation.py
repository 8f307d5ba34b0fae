"""Text from docstrings: what is read, what is held out, and the windows made of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen.data import documentation
from edgegen.data.documentation import END, DocumentationData, docstrings, split_texts

LONG = "Number {} of the sentences that documentation is made of. " + "It goes on and on. " * 12


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """80 modules of 4 docstrings; a licence notice stands in all of them."""
    root = tmp_path / "lore"
    (root / "tests").mkdir(parents=True)
    notice = "This paragraph is in every file, as notices are, and long enough to be noticed twice."
    for number in range(80):
        texts = [LONG.format(f"{number} {part}") for part in "abcd"]
        (root / f"m{number}.py").write_text(
            f'"""{texts[0]}\n\n{notice}\n"""\nraise RuntimeError("run")\n\n'
            f'class A:\n    """{texts[1]}"""\n    def f(self):\n        """{texts[2]}"""\n\n'
            f'async def g():\n    """{texts[3]}"""\n\ndef h():\n    """Short."""\n'
        )
    (root / "tests" / "test_lore.py").write_text(f'"""{LONG.format("of a test")}"""\n')
    (root / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        documentation, "_origin", lambda name: {"version": "1", "licence": "CC0-1.0"}
    )
    return "lore"


def data(package: str, **options: object) -> DocumentationData:
    made = DocumentationData(2, packages=[package], length=16, vocabulary=300, **options)  # type: ignore[arg-type]
    made.setup()
    return made


def test_docstrings_are_read_not_run(package: str) -> None:
    found = list(docstrings(Path(sys.path[0]) / package))
    assert len(found) == 80 * 4
    assert {place for place, _ in found} == {f"m{number}.py" for number in range(80)}
    assert package not in sys.modules


def test_nothing_held_out_was_trained_on(package: str) -> None:
    train, test = split_texts([package])
    assert len(train) + len(test) == 80 * 4
    assert 1 <= len(test) // 4 <= 8  # files
    paragraphs = [part for text in [*train, *test] for part in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) == 80 * 4 + 1
    assert split_texts([package]) == (train, test)


def test_windows(package: str) -> None:
    made = data(package)
    tokenizer = made.tokenizer
    assert tokenizer is not None
    assert len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer("naïve café")["input_ids"]) == "naïve café"
    windows = [made.train_set[number] for number in range(40)]
    assert {tuple(window.shape) for window in windows} == {(17,)}
    assert windows[0].dtype == torch.int64
    # The validation windows share one token with their neighbours, which no model predicts twice.
    held_out = made.validation_sets["text"]
    joined = [int(t) for number in range(len(held_out)) for t in held_out[number][1:]]
    text = tokenizer.decode([int(held_out[0][0]), *joined])
    expected = END.join([*split_texts([package])[1], ""])
    assert expected.startswith(text)
    assert len(text) > len(expected) - 17 * 8
    assert made.about["train_tokens"] > 40 * 16
    assert made.about["packages"] == {package: {"version": "1", "licence": "CC0-1.0"}}


def test_the_stream_is_the_seeds(package: str) -> None:
    first, again, other = data(package), data(package), data(package, seed=1)
    for number in (0, 7, 5000):
        assert torch.equal(first.train_set[number], again.train_set[number])
    assert not all(torch.equal(first.train_set[n], other.train_set[n]) for n in range(4))


def test_a_tokenizer_from_a_folder(package: str, tmp_path: Path) -> None:
    first = data(package)
    first.tokenizer.save_pretrained(tmp_path / "kept")
    again = data(package, tokenizer_folder=str(tmp_path / "kept"))
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert np.array_equal(again.train_set[3], first.train_set[3])


def test_mistakes(package: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json there"):
        DocumentationData(2, tokenizer_folder=str(tmp_path))
    for name in ("no_such_package", "not a name", "this"):
        with pytest.raises(ValueError, match=f"packages={name}: no such package is installed"):
            split_texts([name])


def test_licences_are_told() -> None:
    for package in ("numpy", "scipy"):
        told = documentation._origin(package)
        assert "BSD" in told["licence"]
        assert told["version"][0].isdigit()
