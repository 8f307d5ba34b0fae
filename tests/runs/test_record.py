import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from edgegen.runs.atomic import write_atomic
from edgegen.runs.environment import git_state, sha256
from edgegen.runs.record import Killed, Run, is_finished, read_record


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_finished_run_leaves_its_four_files(tmp_path):
    config = {"seed": 3, "prompts": ["a ${b}", "ü"], "nested": {"x": None}}
    with Run(tmp_path / "r", config=config, overrides=["steps=3"], command="try") as run:
        run.log({"a/b": 1})
        assert read_record(run.dir)["status"] == "running"
        assert not is_finished(run.dir)
    found = {path.name for path in (tmp_path / "r").iterdir()}
    assert found == {"metrics.json", "config.yaml", "overrides.txt", "run.json"}
    assert yaml.safe_load((tmp_path / "r/config.yaml").read_text()) == config
    assert (tmp_path / "r/overrides.txt").read_text() == "steps=3\n"
    record = read_record(tmp_path / "r")
    assert is_finished(tmp_path / "r")
    assert record["seeds"] == [3]
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["start"] <= record["end"]
    assert record["seconds"] >= 0


def test_nothing_is_written_before_something_is_kept(tmp_path):
    with pytest.raises(ValueError, match="steps"), Run(tmp_path / "r"):
        raise ValueError("steps=-1: must be 1 or more")
    assert not (tmp_path / "r").exists()


def test_a_refused_second_run_does_not_spoil_a_finished_one(tmp_path):
    with Run(tmp_path) as run:
        run.log({"a/b": 1})
    with pytest.raises(ValueError, match="no"), Run(tmp_path):
        raise ValueError("no")
    assert is_finished(tmp_path)
    assert metrics_of(tmp_path) == {"a/b": 1}


def interrupted_by_lightning():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("end", "raised", "status"),
    [
        (lambda: fail(RuntimeError("two\nlines")), RuntimeError, "failed"),
        (lambda: fail(SystemExit(1)), SystemExit, "failed"),
        (lambda: fail(KeyboardInterrupt()), KeyboardInterrupt, "killed"),
        (lambda: fail(Killed("SIGTERM")), Killed, "killed"),
        (interrupted_by_lightning, SystemExit, "killed"),
    ],
)
def test_a_broken_run_says_so(tmp_path, end, raised, status):
    def run_it():
        with Run(tmp_path) as run:
            run.log({"a/b": 1})
            end()

    with pytest.raises(raised):
        run_it()
    record = read_record(tmp_path)
    assert record["status"] == status
    assert not is_finished(tmp_path)
    assert "\n" not in record["error"]
    assert raised.__name__ in record["error"]
    with Run(tmp_path) as run:  # and its metrics do not live on in the next run
        assert not (run.dir / "metrics.json").exists()
    assert metrics_of(tmp_path) == {}
    assert is_finished(tmp_path)


def test_a_process_that_is_shot_never_passes_for_finished(tmp_path):
    code = (
        "import os, signal, sys; from edgegen.runs.record import Run\n"
        "with Run(sys.argv[1]) as run:\n"
        "    run.log({'a/b': 1}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read_record(tmp_path)["status"] == "running"
    assert not is_finished(tmp_path)
    with Run(tmp_path) as run:  # its lock is gone with it
        run.start()
    assert is_finished(tmp_path)


def test_two_runs_never_share_a_folder(tmp_path):
    with Run(tmp_path) as first:
        first.start()
        with pytest.raises(ValueError, match="another run"), Run(tmp_path) as second:
            second.log({"a/b": 2})
        first.log({"a/b": 1})
    assert metrics_of(tmp_path) == {"a/b": 1}


def test_numbers_of_any_kind_are_kept_and_nan_is_null(tmp_path):
    with Run(tmp_path) as run:
        run.log({"a/int": 2, "a/np": np.float32(0.5), "a/torch": torch.tensor(3)})
        run.log({"a/bool": True, "a/nan": float("nan"), "a/inf": torch.tensor(float("-inf"))})
        run.note("a/none", "no pictures")
        run.log({"a/later": float("nan")})
        run.log({"a/later": 1.5})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=fail) == {
        "a/int": 2,
        "a/np": 0.5,
        "a/torch": 3,
        "a/bool": 1,
        "a/nan": None,
        "a/inf": None,
        "a/none": None,
        "a/later": 1.5,
    }
    assert read_record(tmp_path)["null_metrics"] == {
        "a/nan": "the value was nan",
        "a/inf": "the value was -inf",
        "a/none": "no pictures",
    }


@pytest.mark.parametrize(
    "metrics",
    [{"nogroup": 1}, {"Upper/x": 1}, {"a/": 1}, {"a/b": "x"}, {"a/b": torch.zeros(2)}],
)
def test_metrics_of_another_form_are_refused(tmp_path, metrics):
    with pytest.raises(ValueError, match="must be"):
        Run(tmp_path / "r").log(metrics)
    assert not (tmp_path / "r").exists()


def test_used_files_are_hashed_anew_when_they_change(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"one")
    with Run(tmp_path / "r") as run:
        assert run.used_file(file) == hashlib.sha256(b"one").hexdigest()
        with pytest.raises(FileNotFoundError, match="nope"):
            run.used_file(tmp_path / "nope")
    assert read_record(tmp_path / "r")["files"][str(file)]["bytes"] == 3
    file.write_bytes(b"other")
    assert sha256(file) == hashlib.sha256(b"other").hexdigest()


def test_what_the_settings_name_is_hashed(tmp_path):
    adaptor = tmp_path / "adaptor.safetensors"
    adaptor.write_bytes(b"abc")
    config = {"method": {"clockwork": {"adaptor": str(adaptor)}}, "runs": str(tmp_path)}
    config["logger"] = {"save_dir": str(tmp_path / "r")}
    with Run(tmp_path / "r", config=config) as run:
        run.start()
    assert read_record(tmp_path / "r")["inputs"] == {"method.clockwork.adaptor": sha256(adaptor)}


def test_only_the_first_process_of_a_distributed_run_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Run(tmp_path / "r") as run:
        run.log({"a/b": 1})
    assert not (tmp_path / "r").exists()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_atomic(tmp_path / "new/f", "old")
    monkeypatch.setattr("os.replace", lambda *_: fail(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "new/f", "new")
    assert (tmp_path / "new/f").read_text() == "old"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f"]


def test_the_state_of_the_code_is_known(tmp_path):
    def git(*arguments):
        call = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run([*call, *arguments], check=True, capture_output=True, text=True)

    assert git_state(tmp_path)["sha"] is None
    git("init")
    (tmp_path / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "x")
    clean = git_state(tmp_path)
    assert clean == {"sha": git("rev-parse", "HEAD").stdout.strip(), "dirty": False}
    (tmp_path / "a.py").write_text("2\n")
    first = git_state(tmp_path)
    (tmp_path / "edgegen").mkdir()
    (tmp_path / "edgegen/new.py").write_text("3\n")
    second = git_state(tmp_path)
    assert first["dirty"]
    assert second["dirty"]
    assert len({first["diff_sha256"], second["diff_sha256"]}) == 2
