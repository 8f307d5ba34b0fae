"""Every YAML file composes, names what exists, and what it describes can be built."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import CLIPModel

from edgegen import configs
from edgegen.commands._main import check_targets
from edgegen.training.denoising import DenoisingModule

ROOT = Path(configs.__file__).parent
ROOTS = sorted(path.stem for path in ROOT.glob("*.yaml"))
OPTIONS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("*/**/*.yaml")
)


def commands(name: str) -> set[str]:
    """The commands that a file's header shows."""
    text = (ROOT / f"{name}.yaml").read_text(encoding="utf-8")
    return set(re.findall(r"^# +python scripts/(\w+)\.py", text, re.MULTILINE))


TRAININGS = [
    name.removeprefix("experiment/")
    for name in OPTIONS
    if name.startswith("experiment/") and "train" in commands(name)
]


def composed(root: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        return compose(root, list(overrides))


@functools.cache
def groups(root: str) -> set[str]:
    """The groups that a root config chooses from in its defaults list."""
    GlobalHydra.instance().clear()
    with initialize_config_module("edgegen.configs", version_base="1.3"):
        choices = compose(root, return_hydra_config=True).hydra.runtime.choices
    return {str(name) for name in choices if not str(name).startswith("hydra/")}


def fill(node: DictConfig) -> None:
    """Give every required option a value."""
    for key in node:
        if OmegaConf.is_missing(node, key):
            node[key] = "given"
        elif isinstance(node._get_node(key), DictConfig) and node[key] is not None:
            fill(node[key])


def check(config: DictConfig) -> None:
    fill(config)
    check_targets(config)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def test_the_files_are_found() -> None:
    assert {"train", "generate", "flops", "build_emoji"} <= set(ROOTS)
    assert {"trainer/ddp", "experiment/emoji/unet", "model/sd15"} <= set(OPTIONS)


@pytest.mark.parametrize("root", ROOTS)
def test_every_command_composes(root: str) -> None:
    config = composed(root)
    assert "output_dir" in config
    check(config)


def options_of(root: str) -> dict[str, list[str]]:
    """The options of each group that a root config chooses from, but for whole experiments."""
    found: dict[str, list[str]] = {}
    for name in OPTIONS:
        group, _, option = name.partition("/")
        if group in groups(root) - {"experiment"}:
            found.setdefault(group, []).append(option)
    return found


@pytest.mark.parametrize("root", ROOTS)
def test_every_option_of_a_command_composes(root: str) -> None:
    """One of each group at a time, until each has had its turn."""
    options = options_of(root)
    for turn in range(max(map(len, options.values()), default=0)):
        check(composed(root, *(f"{key}={all_[turn % len(all_)]}" for key, all_ in options.items())))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("experiment/")])
def test_every_experiment_composes(name: str) -> None:
    users = sorted(commands(name))  # it sets the options of the command that it shows
    assert users
    for root in users:
        check(composed(root, f"experiment={name.removeprefix('experiment/')}"))


def test_options_of_no_command_compose() -> None:
    """They are chosen with +GROUP=OPTION, or by another file."""
    chosen = set().union(*map(groups, ROOTS))
    added = [name.partition("/") for name in OPTIONS if name.partition("/")[0] not in chosen]
    assert added
    for group, _, option in added:
        check(composed("generate", f"+{group}={option}"))


@pytest.mark.parametrize("name", [*ROOTS, *OPTIONS])
def test_headers_show_commands_that_exist(name: str) -> None:
    scripts = ROOT.parent / "scripts"
    if not scripts.is_dir():
        pytest.skip("installed without the scripts")
    assert commands(name) <= {path.stem for path in scripts.glob("*.py")}
    assert name not in ROOTS or name in commands(name)


# Trainings


def training(experiment: str, emoji_file: Path, **missing: str) -> DictConfig:
    """A training's config, on the small dataset, with the folders that it asks for."""
    config = composed("train", f"experiment={experiment}", "output_dir=run")
    for key, value in missing.items():
        if OmegaConf.is_missing(config, key):
            config[key] = value
    if "emoji" in config.data:
        config.data.emoji = str(emoji_file)
        if "groups" in config.data:
            config.data.groups = None  # not all of them are in the small dataset
    return config


def build(node: DictConfig) -> Any:
    return instantiate(node, _convert_="all")


@pytest.mark.parametrize("experiment", TRAININGS)
def test_every_training_can_be_built(
    experiment: str,
    emoji_file: Path,
    vae_folder: Path,
    clip_folder: Path,
    tiny_pipeline_folder: Path,
) -> None:
    folders = {"vae": str(vae_folder), "clip": str(clip_folder), "base": "emoji"}
    config = training(experiment, emoji_file, **folders)
    if "model" in config:  # what a teacher is read from
        config.model.source = str(tiny_pipeline_folder)
    if "guided" in config.module:  # `base` stands for a distilled one here
        config.module.guided = True
        if "sampling" in config.module:
            config.module.sampling.guidance = 1.0
    assert OmegaConf.missing_keys(config) == set()
    data, module = build(config.data), build(config.module)
    assert isinstance(data, lightning.LightningDataModule)
    assert isinstance(module, lightning.LightningModule)
    optimizer = module.configure_optimizers()["optimizer"]
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    for callback in config.callbacks.values():
        assert isinstance(build(callback), lightning.Callback)


def test_the_embedded_family_fits_together(emoji_file: Path, tmp_path: Path) -> None:
    """Untrained, at full size: the autoencoder's latents and the CLIP's text enter the UNet."""
    vae = build(training("emoji/vae", emoji_file).module).model
    vae.save_pretrained(tmp_path / "vae")
    config = training("emoji/clip", emoji_file)
    clip, data = build(config.module), build(config.data)
    assert clip.model.config.text_config.vocab_size >= len(data.tokenizer)
    assert clip.model.config.text_config.max_position_embeddings == data.tokenizer.model_max_length
    clip.export(tmp_path / "clip", data)
    config = training(
        "emoji/unet", emoji_file, vae=str(tmp_path / "vae"), clip=str(tmp_path / "clip")
    )
    config.module.compile = False
    config.data.update(views=1, limit=3, cache=None, groups=None, batch_size=2)
    module, data = build(config.module), build(config.data)
    unet = module.unet.config
    assert sum(p.numel() for p in module.unet.parameters()) <= 10e6
    assert len(unet.down_block_types) == 4
    assert sum("CrossAttn" in name for name in unet.down_block_types) == 3
    assert sum("CrossAttn" in name for name in unet.up_block_types) == 3
    data.setup()
    latents, tokens = data.train_set[0]
    assert latents.shape == (vae.config.latent_channels, unet.sample_size, unet.sample_size)
    assert latents.shape[-1] * 4 == 64
    assert isinstance(module, DenoisingModule)
    with torch.no_grad():
        text = module.text_encoder(tokens[None])[0]
        output = module.unet(latents[None], torch.tensor([5]), text).sample
    assert output.shape == latents[None].shape
    assert isinstance(clip.model, CLIPModel)


TRAINERS = [name.removeprefix("trainer/") for name in OPTIONS if name.startswith("trainer/")]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_can_be_built(name: str, tmp_path: Path) -> None:
    overrides = [f"trainer={name}", "trainer.max_steps=1"]
    if not torch.cuda.is_available():
        devices = 2 if name in ("ddp", "fsdp") else 1
        overrides += ["trainer.accelerator=cpu", f"trainer.devices={devices}"]
    config = composed("train", *overrides)
    trainer = build(config.trainer)
    assert isinstance(trainer, lightning.Trainer)
    assert trainer.world_size == (2 if name in ("ddp", "fsdp") else 1)
    # The stream shards itself and never ends: no epochs, no sampler of Lightning's.
    assert trainer.check_val_every_n_epoch is None
    assert not trainer._accelerator_connector.use_distributed_sampler


@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb"])
def test_every_logger_can_be_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "csv" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = composed("train", f"logger={name}", f"output_dir={tmp_path}")
    logger = build(config.logger)
    assert isinstance(logger, lightning.pytorch.loggers.Logger)
    assert str(logger.save_dir).startswith(str(tmp_path))
