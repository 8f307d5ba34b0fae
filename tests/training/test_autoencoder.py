from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from edgegen.training.autoencoder import AutoencoderModule

OPTIMIZER = {"lr": 1e-3, "schedule": "constant", "warmup": 0, "steps": 1}


class Trainer:
    accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 5


class Data:
    def setup(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.train_set = list(torch.rand(64, 3, 16, 16, generator=generator) * 2 - 1)


def module(vae_folder: Path, **options: object) -> AutoencoderModule:
    made = AutoencoderModule(AutoencoderKL.from_pretrained(vae_folder), OPTIMIZER, **options)
    made._trainer = Trainer()
    made.log_dict = lambda values: made.logged.update(values)
    made.logged = {}
    return made


def test_loss_by_hand(vae_folder: Path) -> None:
    made = module(vae_folder, kl=0.25)
    data = Data()
    data.setup()
    batch = torch.stack(data.train_set[:4])
    loss = made.training_step(batch, 0)
    with torch.no_grad():
        posterior = made.model.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5 * 1024))
        error = made.model.decode(posterior.mean + posterior.std * noise).sample - batch
        slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        pixels = 0.5 * error.abs().mean() + 2 * error.square().mean() + 0.5 * slopes
        # diffusers' own sums over a picture's latent values.
        kl = posterior.kl().mean() / posterior.mean[0].numel()
    torch.testing.assert_close(made.logged["train/pixels"], pixels, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.logged["train/kl"], kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, pixels + 0.25 * kl, rtol=1e-4, atol=1e-5)


def test_exported_latents_are_standard(vae_folder: Path, tmp_path: Path) -> None:
    made, data = module(vae_folder), Data()
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    made.export(tmp_path / "model", data, samples=64)
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())
    loaded = AutoencoderKL.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        latents = loaded.encode(torch.stack(data.train_set)).latent_dist.mean
    assert loaded.config.scaling_factor == 1
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=1e-3)
