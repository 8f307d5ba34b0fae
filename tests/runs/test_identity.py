import subprocess
import sys
from pathlib import Path

import pytest

from edgegen.runs import identity
from edgegen.runs.identity import code_version, input_files, run_id

SETTINGS = {"steps": 8, "model": {"source": "somebody/model"}, "seeds": [0, 1]}


def test_equal_for_equal_settings_in_any_order():
    turned = dict(reversed(SETTINGS.items()))
    assert run_id("a", SETTINGS) == run_id("a", turned)


@pytest.mark.parametrize("key", ["output_dir", "cache", "resume", "log_looks"])
def test_where_a_run_is_kept_does_not_count(key):
    assert run_id("a", SETTINGS) == run_id("a", SETTINGS | {key: "/elsewhere"})


def test_a_cache_that_fills_does_not_count(tmp_path):
    settings = SETTINGS | {"data": {"cache": str(tmp_path), "seed": 0}}
    settings["module"] = {"teacher": [{"store": str(tmp_path)}]}
    before = run_id("a", settings)
    (tmp_path / "latents.npy").write_bytes(b"kept")
    assert run_id("a", settings) == before
    assert input_files(settings) == {}
    assert run_id("a", settings | {"data": {"seed": 0}}) == before
    assert run_id("a", settings | {"data": {"seed": 1}}) != before


def test_an_embedded_model_counts_by_its_content_wherever_it_is_named():
    found = input_files({"base": "emoji", "module": {"unet": {"folder": "emoji"}}})
    assert found.keys() == {"base", "module.unet.folder"}
    assert set(found.values()) == set(input_files({"model": {"source": "emoji"}}).values())


def test_all_else_counts():
    ids = {
        run_id("a", SETTINGS),
        run_id("b", SETTINGS),
        run_id("a", SETTINGS | {"steps": 9}),
        run_id("a", SETTINGS | {"steps": "8"}),
        run_id("a", SETTINGS | {"seeds": [1, 0]}),
        run_id("a", SETTINGS | {"model": {"source": "somebody/other"}}),
        run_id("a", SETTINGS | {"deep": {"output_dir": "x"}}),
        run_id("a", SETTINGS, code="another"),
        run_id("a", SETTINGS, inputs={"x": "another"}),
    }
    assert len(ids) == 9


def test_it_is_the_same_in_another_process():
    program = f"from edgegen.runs.identity import run_id; print(run_id('a', {SETTINGS!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == run_id("a", SETTINGS), done.stderr


def test_no_table_reads_it_as_a_number():
    for steps in range(50):
        with pytest.raises(ValueError, match="could not convert"):
            float(run_id("a", {"steps": steps}))


def test_weights_count_by_their_content(tmp_path):
    folder, file = tmp_path / "model", tmp_path / "prompts.txt"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(b"one")
    file.write_text("a fox")
    settings = {"model": {"source": str(folder)}, "prompts_file": str(file), "n": 3}
    first = input_files(settings)
    assert set(first) == {"model.source", "prompts_file"}
    # As `printf 'a fox' | sha256sum` gives it.
    assert first["prompts_file"][:16] == "5ebbe2a2650a5e15"
    (folder / ".lock").write_text("hidden files are nobody's weights")
    assert input_files(settings) == first

    before = run_id("generate", settings)
    (folder / "unet" / "weights.safetensors").write_bytes(b"two")
    assert input_files(settings)["model.source"] != first["model.source"]
    assert run_id("generate", settings) != before

    moved = folder.rename(tmp_path / "moved")
    there = input_files({"model": {"source": str(moved)}})
    (moved / "unet" / "weights.safetensors").write_bytes(b"one")
    assert there["model.source"] != first["model.source"]
    assert input_files({"model": {"source": str(moved)}})["model.source"] == first["model.source"]


def test_words_that_name_no_file_are_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dev").mkdir()
    settings = {
        "split": "dev",
        "prompt": "a\nb",
        "long": "x" * 5000,
        "none": None,
        "odd": "~nobody",
    }
    assert input_files(settings) == {}


def test_the_code_is_the_packages_python_files(tmp_path):
    assert len(code_version()) == 16
    int(code_version(), 16)


def test_what_is_used_without_being_named_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, judge, adaptors, animated drawings and the clip inside the package."""
    embedded = identity._embedded()
    assert set(embedded) == {"data", "emoji-judge", "adaptors", "animated", "clips"}
    before = run_id("evaluate", SETTINGS)
    monkeypatch.setattr(identity, "_embedded", lambda: embedded | {"data": "another"})
    assert run_id("evaluate", SETTINGS) != before


def test_folders_with_plain_names_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "default"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"one")
    model = {"vae": "mine", "tokenizer": "mine", "config": "mine"}
    found = input_files(
        {"images": "mine", "metrics": {"text": {"clip": "mine"}}, "way": "default", "model": model}
    )
    assert set(found) == {"images", "metrics.text.clip", *(f"model.{key}" for key in model)}
