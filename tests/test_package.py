from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgegen

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_listed_packages_are_those_on_disk() -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in ROOT.joinpath("edgegen").rglob("__init__.py")
    }
    assert found | {"edgegen.configs"} == set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in ROOT.joinpath("edgegen").rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == edgegen.__version__


def test_entry_points_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_every_script_is_short_and_only_calls_a_command() -> None:
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    assert scripts
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 30
        assert f"from edgegen.commands.{path.stem} import main" in text, path.name
        assert (ROOT / "configs" / f"{path.stem}.yaml").is_file()


def test_import_is_light() -> None:
    """`import edgegen` brings no torch, no diffusers and no hydra along."""
    code = "import sys, edgegen; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "diffusers", "transformers", "lightning", "hydra", "scipy", "matplotlib"}
    assert heavy & set(done.stdout.split()) == set()


def test_names_are_handed_on() -> None:
    for name in edgegen.__all__:
        assert getattr(edgegen, name) is not None
    assert set(edgegen.__all__) <= set(dir(edgegen))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edgegen.no_such_name


def test_no_module_of_the_package_imports_it_by_name() -> None:
    """Inside, imports are relative: the package may be vendored under another name."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (ROOT / "edgegen").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import edgegen", "from edgegen"))
    ]
    assert found == []
