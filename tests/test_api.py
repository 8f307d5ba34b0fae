from __future__ import annotations

import subprocess
import sys

import pytest

import edgegen
from edgegen.pipelines import load as module


def test_load_is_the_one_of_the_pipelines() -> None:
    assert edgegen.load is module.load


def test_importing_edgegen_does_not_import_torch() -> None:
    code = "import edgegen, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_load_of_nothing_says_nothing_else() -> None:
    code = "import edgegen\ntry: edgegen.load('nope')\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("model 'nope' is unknown: allowed are the embedded")
    assert done.stderr == ""


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        edgegen.lode  # noqa: B018
