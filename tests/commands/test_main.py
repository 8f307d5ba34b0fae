import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from edgegen.commands import generate, train
from edgegen.commands._arguments import options, quoted, rewrite
from edgegen.commands._main import check_targets, command
from edgegen.runs.record import Run, is_finished, read_record

FREE = ("prompts", "prompts_file")


class Tried:
    """A command over `configs/generate.yaml` that keeps what it was given."""

    def __init__(self) -> None:
        self.configs: list[dict] = []
        self.argv: list[str] = []
        self.act = lambda cfg, run: run.log({"a/b": 1})

        @command("generate", free_text=FREE)
        def main(cfg: DictConfig, run: Run) -> None:
            self.configs.append(OmegaConf.to_container(cfg, resolve=True))
            self.argv = list(sys.argv)
            self.act(cfg, run)

        self.main = main


@pytest.fixture
def tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return Tried()


def refused(tried, capsys, *arguments, code=2):
    """Runs the command, which must stop with one line; returns the line."""
    with pytest.raises(SystemExit) as stopped:
        tried.main(list(arguments))
    printed = capsys.readouterr()
    assert stopped.value.code == code
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


# Free text


def composed(arguments):
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        return OmegaConf.to_container(compose("generate", rewrite(arguments, FREE, "generate")[:1]))


ODD = ["a, b", "'", '"', "\\", "\\'", "'\\", "${a}", "\\${a}", "\\\\${a}\\", "a=b", "[a]", "{a: b}"]
ODD += ["", " ", " a ", "null ", "true", "1", "1e3", "a\nb", "\t", "#", "~x", "+y", "@", "$", "${"]
ODD += ["été 🦊", "choice(1,2)", "a\\\n", "\\\\", "(", ":", "'a', 'b'", "[a, b", '["a", 1]', "[]x"]


@pytest.mark.parametrize("text", ODD)
def test_free_text_is_taken_literally(text):
    assert (
        OmegaConf.to_container(OmegaConf.create(composed([f"prompts={text}"])), resolve=True).get(
            "prompts"
        )
        == text
    )


def test_free_text_is_taken_literally_whatever_it_is():
    pieces = ["\\", "'", '"', "${", "}", "$", "{", "[", "]", ",", "=", " ", "a", "\n", "(", ")"]
    random.seed(0)
    texts = ["".join(random.choices(pieces, k=random.randint(1, 8))) for _ in range(300)]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for text in texts:
        value = parser.parse_override(f"key={quoted(text)}").value()
        assert OmegaConf.create({"key": str(value)}).key == text
    listed = ",".join(quoted(text) for text in texts)
    values = parser.parse_override(f"key=[{listed}]").value()
    assert list(OmegaConf.create({"key": [str(value) for value in values]}).key) == texts


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ('["a, b","${c}"]', ["a, b", "${c}"]),
        ("['it''s', \"x\"]", ["its", "x"]),
        (' ["a"] ', ["a"]),
        ("[]", []),
        ("null", None),
        ("[a, b]", "[a, b]"),
        ('"a"', '"a"'),
    ],
)
def test_lists_of_texts(tried, typed, wanted):
    tried.main([f"prompts={typed}"])
    assert tried.configs[0]["prompts"] == wanted


def test_overrides_are_recorded_as_typed(tried):
    typed = ["prompts=a, 'b' = ${c}", "steps=3", "output_dir=o"]
    tried.main(typed)
    with open("o/overrides.txt") as file:
        assert file.read().splitlines() == typed
    assert tried.argv[1:] == typed
    assert read_record("o")["command"] == "generate"


# The model


@pytest.mark.parametrize("source", ["/a/b, c=d", "owner/name", "x.safetensors", "./emoji"])
def test_a_model_that_is_no_option_is_a_source(tried, source):
    tried.main([f"model={source}", "model.height=64"])
    model = tried.configs[0]["model"]
    assert (model["name"], model["source"], model["height"]) == ("custom", source, 64)


def test_the_last_model_counts(tried):
    tried.main(["model=/a/b", "model=emoji"])
    tried.main(["model=emoji", "model=/a/b"])
    assert [config["model"]["source"] for config in tried.configs] == ["emoji", "/a/b"]


def test_an_option_wins_over_a_folder_of_its_name(tried, tmp_path):
    (tmp_path / "emoji").mkdir()
    (tmp_path / "mine").mkdir()
    tried.main(["model=emoji"])
    tried.main(["model=mine"])
    assert [config["model"]["name"] for config in tried.configs] == ["emoji", "custom"]


def test_users_bring_their_own_configs(tried, tmp_path):
    (tmp_path / "extra/model").mkdir(parents=True)
    (tmp_path / "extra/model/mine.yaml").write_text("name: mine\nsource: here\n")
    tried.main([f"hydra.searchpath=[file://{tmp_path}/extra]", "model=mine"])
    tried.main(["model=mine", "--config-dir", str(tmp_path / "extra"), "steps=2"])
    assert [config["model"]["source"] for config in tried.configs] == ["here", "here"]


# Mistakes


def test_an_unknown_option_is_named_with_the_allowed_ones(tried, capsys):
    line = refused(tried, capsys, "stepz=3")
    assert "'stepz'" in line
    assert "did you mean 'steps'" in line
    assert "prompts_file" in line
    line = refused(tried, capsys, "model.hight=3")
    assert "'model.hight'" in line
    assert "source" in line


def test_an_unknown_group_option_is_named_with_the_allowed_ones(tried, capsys):
    line = refused(tried, capsys, "model=emoij")
    assert "model=emoij" in line
    for name in options("model"):
        assert name in line


def test_options_of_a_method_are_named_beside_a_model_of_ones_own(capsys):
    typed = ["model=some/folder", "method=[clockwork]", "method.clockwork.clok=3", "prompts=a"]
    with pytest.raises(SystemExit) as stopped:
        generate.main([*typed, "output_dir=never"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "'method.clockwork.clok' (did you mean 'clock'?)" in line
    assert "before_upsampler" in line


def test_options_inside_a_chosen_experiment_are_named(capsys):
    for typed, words in {
        "experiment=emoji/vea": ["experiment=emoji/vea", "did you mean 'emoji/vae'", "emoji/clip"],
        "module.optimizer.lrr=1": ["'module.optimizer.lrr'", "did you mean 'lr'", "warmup"],
        "module.optimzer.lr=1": ["'module.optimzer'", "did you mean 'optimizer'"],
    }.items():
        with pytest.raises(SystemExit) as stopped:
            train.main(["experiment=emoji/vae", typed, "output_dir=never"])
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        for word in words:
            assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["steps=["], "steps=["),
        (["steps"], "steps"),
        (["--steps", "8"], "--steps"),
        (["model=custom"], "model.source is required"),
        (["prompts=???"], "prompts is required"),
        (["seed=${nothing}"], "nothing"),
        (["--config-dir", "/no/such/folder"], "/no/such/folder"),
        (["+x._target_=os.system"], "x._target_=os.system"),
    ],
)
def test_each_mistake_takes_one_line(tried, capsys, tmp_path, arguments, words):
    tried.act = lambda cfg, run: (cfg.prompts, cfg.model.source)
    assert words in refused(tried, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [ValueError("steps=0:\n must be 1 or more"), FileNotFoundError("steps=0: must be 1 or more")],
)
def test_refused_settings_leave_nothing(tried, capsys, tmp_path, error):
    def act(cfg, run):
        raise error

    tried.act = act
    assert refused(tried, capsys, "output_dir=o") == "generate: error: steps=0: must be 1 or more\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tried, capsys):
    tried.act = lambda cfg, run: Path("nowhere.txt").read_text()
    assert "nowhere.txt" in refused(tried, capsys)


def test_an_output_folder_that_is_a_file_is_refused(tried, capsys, tmp_path):
    (tmp_path / "o").write_text("mine")
    assert "output_dir=o" in refused(tried, capsys, "output_dir=o")
    assert (tmp_path / "o").read_text() == "mine"


def test_faults_of_the_program_come_through(tried):
    def act(cfg, run):
        run.log({"a/b": 1})
        raise RuntimeError("a fault")

    tried.act = act
    with pytest.raises(RuntimeError, match="a fault"):
        tried.main(["output_dir=o"])
    record = read_record("o")
    assert record["status"] == "failed"
    assert any("a fault" in line for line in record["traceback"])


def test_full_errors_on_request(tried, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def act(cfg, run):
        raise ValueError("steps")

    tried.act = act
    with pytest.raises(ValueError, match="steps"):
        tried.main([])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_recorded_as_killed(tried, capsys, number, code):
    def act(cfg, run):
        run.log({"a/b": 1})
        os.kill(os.getpid(), number)

    tried.act = act
    before = signal.getsignal(signal.SIGTERM)
    # A runner in the background may have told its processes to ignore it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        refused(tried, capsys, "output_dir=o", code=code)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert read_record("o")["status"] == "killed"
    assert signal.getsignal(signal.SIGTERM) is before


# The folders


def test_runs_go_to_a_dated_folder_and_hydra_leaves_no_trace(tried, tmp_path):
    tried.act = lambda cfg, run: (run.dir / "here").write_text(os.getcwd())
    tried.main(["steps=3"])
    (folder,) = (tmp_path / "outputs/generate").iterdir()
    assert (folder / "here").read_text() == str(tmp_path)
    found = {path.name for path in folder.iterdir()}
    assert found == {"here", "metrics.json", "config.yaml", "overrides.txt", "run.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert f"output_dir: outputs/generate/{folder.name}" in (folder / "config.yaml").read_text()


def test_a_config_is_composed_once(tried, monkeypatch):
    times = []
    compose = ConfigLoaderImpl.load_configuration

    def counted(self, *arguments, **options):
        times.append(1)
        return compose(self, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    tried.main(["steps=3", "output_dir=one"])
    assert len(times) == 1
    tried.main(["steps=3,4", "hydra.mode=MULTIRUN", "output_dir=many"])
    assert [config["steps"] for config in tried.configs] == [3, 3, 4]


def test_a_sweep_has_a_folder_a_job(tried, tmp_path):
    tried.act = lambda cfg, run: run.log({"a/steps": cfg.steps})
    tried.main(["-m", "steps=2,3", "prompts=a, b", "--config-dir", str(tmp_path), "output_dir=o"])
    assert [config["steps"] for config in tried.configs] == [2, 3]
    assert [config["prompts"] for config in tried.configs] == ["a, b"] * 2
    for number, steps in enumerate([2, 3]):
        folder = tmp_path / "o" / str(number)
        assert json.loads((folder / "metrics.json").read_text()) == {"a/steps": steps}
        assert f"steps={steps}" in (folder / "overrides.txt").read_text()
        assert is_finished(folder)


def test_a_sweep_with_a_bad_job_fails(tried, capsys):
    def act(cfg, run):
        if cfg.steps == 2:
            raise ValueError("steps=2: no")
        run.log({"a/b": 1})

    tried.act = act
    with pytest.raises(SystemExit) as stopped:
        tried.main(["-m", "steps=1,2,3", "output_dir=o"])
    assert stopped.value.code == 2
    assert "generate: error: steps=2: no\n" in capsys.readouterr().err
    assert [is_finished(f"o/{number}") for number in range(3)] == [True, False, True]


def test_output_dir_may_name_other_options(tried):
    tried.main(["output_dir=a b/x,y=${steps}", "steps=7"])
    assert is_finished("a b/x,y=7")


# Configs are not trusted code


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.package.PackageImporter",
        "edgegen.commands._main.os.system",
        "edgegen.runs.atomic.write_atomic",
        "edgegen.runs.record.json.loads",
        "hydra.utils.call",
        "torch",
        "torch.nn.NoSuchThing",
        "",
    ],
)
def test_targets_outside_are_refused(target):
    with pytest.raises(ValueError, match="_target_"):
        check_targets(OmegaConf.create({"a": [{"_target_": target}]}))


@pytest.mark.parametrize(
    "target", ["torch.optim.AdamW", "diffusers.DDIMScheduler", "edgegen.sampling.generate.sample"]
)
def test_targets_inside_are_allowed(target):
    check_targets(OmegaConf.create({"a": {"_target_": target}, "b": {"_target_": "${a._target_}"}}))


def test_interpolation_does_not_hide_a_target():
    with pytest.raises(ValueError, match=r"os\.system"):
        check_targets(OmegaConf.create({"name": "os.system", "a": {"_target_": "${name}"}}))


def test_a_config_cannot_run_code_through_hydra(tried, capsys, tmp_path):
    (tmp_path / "extra/experiment").mkdir(parents=True)
    (tmp_path / "extra/experiment/evil.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: os.mkdir\n"
        f"      path: {tmp_path}/ran\n"
    )
    line = refused(tried, capsys, "experiment=evil", "--config-dir", str(tmp_path / "extra"))
    assert "os.mkdir" in line
    assert not (tmp_path / "ran").exists()
