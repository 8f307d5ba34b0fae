from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest

import edgegen
from edgegen import api
from edgegen.pipelines import load as module
from edgegen.reuse.gating import gating
from edgegen.reuse.peers import deepcache_package, tgate_package


def test_load_is_the_one_of_the_pipelines() -> None:
    assert edgegen.load.__wrapped__ is module.load


def test_importing_edgegen_does_not_import_torch() -> None:
    code = "import edgegen, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao speaks when imported")
def test_load_of_nothing_says_nothing_else() -> None:
    code = "import edgegen\ntry: edgegen.load('nope')\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("model 'nope' is unknown: allowed are the embedded")
    assert done.stderr == ""


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        edgegen.lode  # noqa: B018


def test_apply_enters_weights_first_and_hooks_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def method(name: str) -> api.Method:
        @contextmanager
        def enter(target: object) -> Iterator[str]:
            seen.append(f"{name} in")
            yield name
            seen.append(f"{name} out")

        return enter

    made = {name: method(name) for name in ("own", "skip", "anchors", "int8")}
    seams = {made["skip"]: "steps", made["anchors"]: "attention", made["int8"]: "weights"}
    monkeypatch.setattr(api, "_SEAMS", seams)
    with edgegen.apply(None, made) as found:
        assert found == {name: name for name in made}
    order = ["int8", "anchors", "skip", "own"]
    assert seen == [f"{name} in" for name in order] + [f"{name} out" for name in order[::-1]]


@pytest.mark.parametrize("package", [deepcache_package, tgate_package])
def test_apply_refuses_gating_beside_a_package(package: Any) -> None:
    methods = {"mine": partial(gating, gate=2), "theirs": package}
    with (
        pytest.raises(ValueError, match="mine and theirs cannot be combined"),
        edgegen.apply(None, methods),
    ):
        pass


@pytest.mark.parametrize(
    "methods", [{"clockwork": {"clock": 2}}, {"clockwork": "clockwork"}, ["clockwork"]]
)
def test_apply_takes_functions_of_a_pipeline(methods: Any) -> None:
    with pytest.raises(ValueError, match="give names with functions"), edgegen.apply(None, methods):
        pass


def test_apply_refuses_two_that_skip_blocks() -> None:
    methods = {"a": partial(edgegen.clockwork, clock=2), "b": edgegen.deepcache}
    with (
        pytest.raises(ValueError, match="a and b cannot be combined"),
        edgegen.apply(None, methods),
    ):
        pass
