import json
from pathlib import Path

import pytest

from edgegen.commands import _generation, demo
from edgegen.runs.record import is_finished


def test_the_demo_leaves_a_report_and_reuses_what_is_there(
    tiny_pipeline_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [f"model={tiny_pipeline_folder}", "steps=2", "instructions=[]"]
    demo.main(arguments)
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == tmp_path / "outputs/demo/report.html"
    text = path.read_text()
    pictures = len(list((tmp_path / "outputs/demo/images").iterdir()))
    assert text.count("data:image/png;base64,") == pictures >= 20
    metrics = json.loads((path.parent / "metrics.json").read_text())
    assert metrics["run/images_new"] == pictures
    assert is_finished(path.parent)
    for words in ("Text encoder", "UNet", "VAE decoder", "conv + linear", "Run record"):
        assert words in text

    monkeypatch.setattr(_generation, "sample", None)  # not called
    demo.main(arguments)
    again = json.loads((path.parent / "metrics.json").read_text())
    assert again == metrics | {"run/images_new": 0}
    assert "VAE decoder" in path.read_text()


def test_the_demo_refuses_what_generate_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["stepz=2"])
    assert stopped.value.code == 2
    assert "'stepz'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
