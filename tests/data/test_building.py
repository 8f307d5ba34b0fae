from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from edgegen.commands.build_emoji import main
from edgegen.data import building
from edgegen.data.building import CAPTIONS, SOURCES, Source, build_emoji, fetch_packages
from edgegen.data.emoji import STYLES, EmojiSet

RED = '<rect width="16" height="16" fill="#f00"/>'
HALF = '<rect width="8" height="16" fill="#00f"/>'


def package(folder: Path, source: Source, files: dict[str, object]) -> None:
    with tarfile.open(folder / source.tarball, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two concepts, one with a skin tone, in the form of the real packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    hand = {"hexcode": "270B", "label": "hand", "tags": ["a", "é"], "group": 1, "subgroup": 2}
    hand["skins"] = [
        {"hexcode": "270B-1F3FB", "tone": 1},
        {"hexcode": "270B-1F3FB-1F3FF", "tone": [1, 5]},
    ]
    sun = {"hexcode": "2600-FE0F", "label": "sun", "group": 3, "subgroup": 4}
    lone = {"hexcode": "1F1E6", "label": "regional indicator A"}
    groups = {"groups": {"1": "people-body", "3": "travel-places"}}
    groups["subgroups"] = {"2": "hand", "4": "sky"}
    package(
        folder, Source(CAPTIONS), {"en/data.json": [hand, sun, lone], "meta/groups.json": groups}
    )
    icons = {
        "width": 16,
        "height": 16,
        "icons": {
            "hand": {"body": RED},
            "hand-light": {"body": HALF},
            "big": {"body": RED, "width": 32},
        },
        "aliases": {"sun": {"parent": "big"}, "turned": {"parent": "hand", "rotate": 1}},
    }
    names = {"270b": "hand", "270b-1f3fb": "hand-light", "2600": "sun", "1f1e6": "turned"}
    for style in ("noto", "twemoji", "fluent-flat"):
        package(folder, SOURCES[style], {"icons.json": icons, "chars.json": names})
    for style in ("noto-v1", "fluent"):  # their names are those of another package
        package(folder, SOURCES[style], {"icons.json": {**icons, "aliases": {}}})
    buffer = io.BytesIO()
    Image.new("RGBA", (128, 128), (0, 255, 0, 255)).save(buffer, "WEBP", lossless=True)
    package(folder, SOURCES["fluent-3d"], {"assets/2600-fe0f.webp": buffer.getvalue(), "x.txt": []})
    return folder


def test_a_small_dataset(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    counts = build_emoji(packages, tmp_path / "emoji.npz")
    full, part = {"base": 2, "tones": 1}, {"base": 1, "tones": 1}
    assert counts == {
        "noto": full,
        "noto-v1": part,
        "twemoji": full,
        "fluent": part,
        "fluent-flat": full,
        "fluent-3d": {"base": 1, "tones": 0},
    }
    emoji = EmojiSet(tmp_path / "emoji.npz")
    assert [(c.hexcode, c.label, c.tags, c.group, c.subgroup) for c in emoji.concepts] == [
        ("270B", "hand", ("a",), "people-body", "hand"),
        ("2600-FE0F", "sun", (), "travel-places", "sky"),
    ]
    drawn = {(p.concept, p.tone, p.style): emoji.rgba(i) for i, p in enumerate(emoji.pictures)}
    assert (drawn[0, 0, "noto"] == [255, 0, 0, 255]).all()
    assert (drawn[0, 1, "noto-v1"][:, :32] == [0, 0, 255, 255]).all()
    assert not drawn[0, 1, "noto-v1"][:, 32:].any()
    # A drawing of another shape keeps it: 32 × 16 units with a square left half, centred.
    sun = drawn[1, 0, "twemoji"]
    assert (sun[17:47, 1:31] == [255, 0, 0, 255]).all()
    assert not sun[:15].any()
    assert not sun[:, 34:].any()
    assert (drawn[1, 0, "fluent-3d"] == [0, 255, 0, 255]).all()


def test_the_command(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("resvg_py")
    output = tmp_path / "a folder" / "emoji.npz"
    run = tmp_path / "run"
    main([f"packages={packages}", f"output={output}", f"output_dir={run}"])
    record = json.loads((run / "run.json").read_text())
    assert record["output"]["sha256"] in capsys.readouterr().out
    assert len(record["files"]) == len(SOURCES) + 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["emoji/noto_base"] == 2
    assert metrics["emoji/bytes"] == output.stat().st_size
    assert len(EmojiSet(output)) == sum(
        metrics[f"emoji/{s}_{k}"] for s in STYLES for k in ("base", "tones")
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize("style", ["noto", "fluent-3d"])
def test_a_cut_package_is_named(
    style: str, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py")
    cut = packages / SOURCES[style].tarball
    cut.write_bytes(cut.read_bytes()[:-40])
    output = tmp_path / "emoji.npz"
    line = refused(capsys, f"packages={packages}", f"output={output}", f"output_dir={tmp_path}/o")
    assert f"{cut}: cut off, or" in line
    assert not output.exists()


def test_mistakes_take_one_line(
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "packages is required" in refused(capsys)
    given = f"packages={packages}"
    assert "fetch=maybe" in refused(capsys, given, "fetch=maybe")
    with monkeypatch.context() as patch:
        real = importlib.util.find_spec
        absent = lambda name: None if name == "resvg_py" else real(name)  # noqa: E731
        patch.setattr(building, "find_spec", absent)
        assert "pip install 'edgegen[build]'" in refused(capsys, given)
    gone = packages / SOURCES["twemoji"].tarball
    gone.unlink()
    line = refused(capsys, given)
    assert f"{gone}: no such package; get it with fetch=true" in line
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "npm is not installed" in refused(capsys, given, "fetch=true")
    assert not (tmp_path / "outputs").exists()


def test_only_missing_packages_are_fetched(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packages / SOURCES["twemoji"].tarball).unlink()
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        f'#!{sys.executable}\nimport sys\nopen("asked", "a").write(" ".join(sys.argv[1:]))\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=":")
    fetch_packages(packages)
    assert (packages / "asked").read_text() == f"pack --silent {SOURCES['twemoji'].package}"
    npm.write_text(f'#!{sys.executable}\nimport sys\nsys.exit("npm error 404\\nnot found")\n')
    with pytest.raises(
        ValueError, match=r"npm pack @iconify-json/twemoji.*: npm error 404 not found"
    ):
        fetch_packages(packages)


def test_names_of_tarballs_are_those_of_npm() -> None:
    """As `npm pack --dry-run` prints them."""
    assert SOURCES["fluent-3d"].tarball == "lobehub-fluent-emoji-3d-1.1.0.tgz"
    assert Source(CAPTIONS).tarball == "emojibase-data-17.0.0.tgz"
