import json
import threading
import time

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from edgegen.commands._cells import Cell
from edgegen.commands._main import command
from edgegen.runs.finished import Finished
from edgegen.runs.identity import code_version
from edgegen.runs.locks import hold


def flops(model, **settings) -> Cell:
    return Cell.of("flops", {"model": str(model), **settings})


def test_a_cell_runs_once_in_a_folder_named_by_its_id(tiny_pipeline_folder, tmp_path, capsys):
    cell = flops(tiny_pipeline_folder, steps=3)
    folder = cell.run(tmp_path)
    assert folder == tmp_path / cell.id
    run = Finished.read(folder)
    assert run.record["command"] == "flops"
    assert (run.record["id"], run.record["code"]) == (cell.id, code_version())
    assert run.config["steps"] == 3
    assert run.config["output_dir"] == str(folder)
    assert len(run.record["inputs"]["model.source"]) == 64
    # What the command prints is kept, and not printed amidst the sweep.
    assert "one picture" in (folder / "output.txt").read_text()
    assert capsys.readouterr().out == ""
    begun = run.record["start"]
    assert cell.run(tmp_path) == folder
    assert Finished.read(folder).record["start"] == begun


def test_a_cell_is_what_the_command_itself_does(tiny_pipeline_folder, tmp_path):
    from edgegen.commands.flops import main

    main([f"model={tiny_pipeline_folder}", "steps=3", f"output_dir={tmp_path / 'typed'}"])
    folder = flops(tiny_pipeline_folder, steps=3).run(tmp_path)
    typed = json.loads((tmp_path / "typed" / "metrics.json").read_text())
    assert Finished.read(folder).metrics == typed


def test_the_id_depends_on_what_matters(tiny_pipeline_folder, tmp_path):
    cell = flops(tiny_pipeline_folder, steps=3)
    assert flops(tiny_pipeline_folder, steps=3, output_dir=str(tmp_path)).id == cell.id
    assert flops(tiny_pipeline_folder, steps=4).id != cell.id
    with_method = flops(tiny_pipeline_folder, steps=3, method=["clockwork"])
    assert with_method.config.method.clockwork._target_.endswith("clockwork")
    other = {"method": ["clockwork"], "method.clockwork.clock": 5}
    assert len({cell.id, with_method.id, flops(tiny_pipeline_folder, steps=3, **other).id}) == 3


def test_values_reach_the_command_as_they_are():
    texts = ["a, b=[c] 'd' ${e} \\", "null", "true", "12", ""]
    for text in texts:
        cell = Cell.of("generate", {"prompts": text, "seed": 3, "guidance": 1e-3, "height": None})
        assert cell.config.prompts == text
        assert (cell.config.seed, cell.config.guidance, cell.config.height) == (3, 1e-3, None)
    assert list(Cell.of("generate", {"prompts": texts}).config.prompts) == texts


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("flips", {}, "command=flips: must be one of"),
        ("sweep", {}, "command=sweep: must be one of"),
        ("flops", {"stepps": 3}, "command flops: unknown option 'stepps' (did you mean 'steps'?)"),
        ("flops", {"method": ["clokwork"]}, "command flops: method=clokwork: no such option"),
        ("flops", {"model": "sd16"}, "command flops: model=sd16: no such option"),
        ("flops", {"steps": object()}, "must be a text, number, list or mapping"),
    ],
)
def test_a_mistake_is_told_in_one_line(name, settings, words):
    with pytest.raises(ValueError, match=r".") as told:
        Cell.of(name, settings)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_inside_another_command_hydra_is_left_as_it_was(tiny_pipeline_folder, tmp_path):
    seen = []

    @command("flops")
    def outer(cfg, run):
        before = GlobalHydra.instance().hydra, HydraConfig.get()
        Cell.of("generate", {"model": str(tiny_pipeline_folder)})
        flops(tiny_pipeline_folder, steps=1).run(tmp_path / "cells")
        seen.append((GlobalHydra.instance().hydra, HydraConfig.get()) == before)
        seen.append(HydraConfig.get().job.name)

    outer(["model=sd15", f"output_dir={tmp_path / 'outer'}"])
    assert seen == [True, "flops"]


def test_a_group_that_was_chosen_can_be_told(monkeypatch, tmp_path):
    """Commands ask Hydra which option of a group was chosen."""
    chosen = []

    @command("generate")
    def main(cfg, run):
        chosen.append(HydraConfig.get().runtime.choices["model"])
        run.log({"a/b": 1})

    monkeypatch.setattr("edgegen.commands.generate.main", main)
    Cell.of("generate", {"model": "emoji"}).run(tmp_path)
    assert chosen == ["emoji"]


def test_a_failed_cell_says_so_and_is_tried_again(tiny_pipeline_folder, tmp_path, monkeypatch):
    cell = flops(tiny_pipeline_folder, dtype="int8")
    with pytest.raises(ValueError, match="dtype=int8"):
        cell.run(tmp_path)
    record = json.loads((tmp_path / cell.id / "run.json").read_text())
    assert record["status"] == "failed"
    assert "dtype=int8" in record["error"]
    with pytest.raises(ValueError, match="dtype=int8"):
        cell.run(tmp_path)


def test_a_cell_that_another_process_is_at(tiny_pipeline_folder, tmp_path):
    cell = flops(tiny_pipeline_folder, steps=2)
    with hold(tmp_path / ".claims" / cell.id):
        assert cell.run(tmp_path, wait=False) is None
        late = threading.Thread(target=cell.run, args=(tmp_path,))
        late.start()
        time.sleep(0.3)
        assert late.is_alive()
    late.join()
    assert cell.run(tmp_path, wait=False) == tmp_path / cell.id


def test_patterns_are_keys(tiny_pipeline_folder, capsys, tmp_path):
    """Of a mapping whose keys no config knows: in a cell, and as typed."""
    from edgegen.commands.flops import main

    layers = {"unet.up_blocks.*": {"weights": {"bits": 8}}, "*.conv_in": {"weights": {"bits": 2}}}
    cell = flops(tiny_pipeline_folder, method=["w4a16"], **{"method.w4a16.layers": layers})
    assert cell.config.method.w4a16.layers == layers
    assert cell.id != flops(tiny_pipeline_folder, method=["w4a16"]).id
    text = "{unet.up_blocks.*: {weights: {bits: 8}}, '*.conv_in': {weights: {bits: 2}}}"
    typed = [f"model.source={tiny_pipeline_folder}", "method=[w4a16]", "guidance=false", "steps=1"]
    found = []
    for more in ([], [f"method.w4a16.layers={text.replace(chr(39), '')}"]):
        folder = tmp_path / str(len(found))
        main([*typed, *more, f"output_dir={folder}"])
        found.append(json.loads((folder / "metrics.json").read_text())["cost/tbops"])
    assert found[0] != found[1]
    with pytest.raises(ValueError, match="'a b': as a key, only letters"):
        flops(tiny_pipeline_folder, **{"method.w4a16.layers": {"a b": {}}})
