"""`python scripts/train.py experiment=emoji/vae`: any LightningModule of the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ..runs.record import Run
from ..training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from ..training.optimization import emulates_bfloat16
from ._main import command
from ._numbers import flag


@command("train")
def main(cfg: DictConfig, run: Run) -> None:
    if cfg.module is None or cfg.data is None:
        raise ValueError("nothing to train: name an experiment, such as experiment=emoji/vae")
    if cfg.trainer.max_steps < 0 and cfg.trainer.max_time is None:
        raise ValueError(
            "training has no end: set trainer.max_steps=N or trainer.max_time=DD:HH:MM:SS"
        )
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: must be a whole number from 0 to {2**32 - 1}")
    if not isinstance(cfg.checkpoint_every, int) or cfg.checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every={cfg.checkpoint_every}: must be a whole number, 1 or more"
        )
    resume, last = flag(cfg, "resume"), run.folder / "checkpoints" / "last.ckpt"
    if last.exists() and not resume:
        raise ValueError(f"{last} exists: continue with resume=true or choose another output_dir")
    if resume and not last.exists():
        print(f"resume=true: no {last}; training begins from its first step", file=sys.stderr)
    lightning.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.module, _convert_="all")
    trainer = _trainer(cfg, run.folder / "checkpoints")
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("trainer.strategy=fsdp: use trainer=fsdp, which shards in another way")
    if isinstance(trainer.strategy, ModelParallelStrategy):
        _check_sharding(module)
    if "bf16" in str(trainer.precision) and emulates_bfloat16(trainer.strategy.root_device):
        print(
            f"trainer.precision={trainer.precision}: this CPU emulates bfloat16, slowly; "
            "trainer.precision=32-true is faster here",
            file=sys.stderr,
        )
    run.start()
    run.info(precision=str(trainer.precision))
    _keep_curves(run.folder / "logs")
    # Checkpoints hold tensors and plain values only, so nothing has to be unpickled.
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if data.validation_sets:
        trainer.validate(module, datamodule=data, verbose=False)
        metrics |= trainer.callback_metrics
    kept = ("train/", "val/")  # and none of the learning rates
    run.log({k: float(v) for k, v in metrics.items() if k.startswith(kept)})
    run.log({"train/steps": trainer.global_step})
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):  # else the next training of this process would go on
            logger.experiment.finish()
    if trainer.is_global_zero:
        module.export(run.dir / "model", data)


def _check_sharding(module: Any) -> None:
    if not hasattr(module, "check_sharding"):
        name = type(module).__name__
        raise ValueError(f"trainer=fsdp: {name} cannot be sharded: use trainer=ddp")
    try:
        module.check_sharding()
    except ValueError as error:
        raise ValueError(f"trainer=fsdp: {error}") from None


def _trainer(cfg: DictConfig, checkpoints: Path) -> lightning.Trainer:
    return _build(
        "trainer",
        cfg.trainer,
        logger=_loggers(cfg, checkpoints.parent),
        callbacks=[
            LastCheckpoint(checkpoints, cfg.checkpoint_every),
            LearningRateMonitor(),
            TQDMProgressBar(refresh_rate=20),
            *(instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()),
        ],
        plugins=[AtomicCheckpointIO()],
    )


def _loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The one chosen, and always a CSV file: what else reads the curves needs no extra."""
    chosen = _build("logger", cfg.logger)
    if isinstance(chosen, CSVLogger):
        return [chosen]
    return [CSVLogger(folder, name="", version="logs"), chosen]


def _build(group: str, config: DictConfig, **arguments: Any) -> Any:
    """Instantiate the chosen option of a group, and tell in a line what it lacks here."""
    chosen = f"{group}={HydraConfig.get().runtime.choices[group]}"
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            extra = chosen.partition("=")[2]
            raise ValueError(f"{chosen}: not installed: pip install 'edgegen[{extra}]'") from error
        if isinstance(cause, MisconfigurationException):
            raise ValueError(f"{chosen}: {cause}") from error
        raise


@rank_zero_only
def _keep_curves(logs: Path) -> None:
    """CSVLogger deletes the file that it finds: give the curves of earlier stretches numbers."""
    if (logs / "metrics.csv").exists():
        (logs / "metrics.csv").rename(logs / f"metrics_{len(list(logs.glob('metrics_*.csv')))}.csv")
