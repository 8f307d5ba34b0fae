"""`python scripts/train.py experiment=emoji/vae`: any LightningModule of the package."""

from __future__ import annotations

import lightning
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from omegaconf import DictConfig

from ..runs.record import Run
from ._main import command


@command("train")
def main(cfg: DictConfig, run: Run) -> None:
    if cfg.module is None or cfg.data is None:
        raise ValueError("nothing to train: name an experiment, such as experiment=emoji/vae")
    if cfg.trainer.max_steps < 0 and cfg.trainer.max_time is None:
        raise ValueError(
            "training has no end: set trainer.max_steps=N or trainer.max_time=DD:HH:MM:SS"
        )
    last = run.folder / "checkpoints" / "last.ckpt"
    if last.exists() and not cfg.resume:
        raise ValueError(f"{last} exists: continue with resume=true or choose another output_dir")
    lightning.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.module, _convert_="all")
    checkpoints = ModelCheckpoint(
        run.dir / "checkpoints",
        filename="{step}",
        save_last=True,
        save_top_k=1,
        every_n_train_steps=cfg.checkpoint_every,
        save_on_train_epoch_end=False,
    )
    trainer = instantiate(
        cfg.trainer,
        logger=instantiate(cfg.logger),
        callbacks=[
            checkpoints,
            LearningRateMonitor(),
            TQDMProgressBar(refresh_rate=20),
            *(instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()),
        ],
    )
    # Checkpoints hold tensors and plain values only, so nothing has to be unpickled.
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    run.log({name: float(v) for name, v in trainer.callback_metrics.items() if "/" in name})
    run.log({"train/steps": trainer.global_step})
    if trainer.is_global_zero:
        module.export(run.dir / "model", data)
