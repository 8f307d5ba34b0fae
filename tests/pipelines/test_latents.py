from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from edgegen.pipelines.latents import fold_latent_moments, latent_moments


def autoencoder(**options: object) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=3,
        norm_num_groups=4,
        **options,
    )
    with torch.no_grad():  # latents far from standard
        vae.quant_conv.weight.mul_(7)
        vae.quant_conv.bias.add_(torch.tensor([3.0, -4.0, 10.0, 0.5, -1.0, 0.2]))
    return vae.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_moments_are_those_of_all_values_of_a_channel(pictures: torch.Tensor) -> None:
    vae = autoencoder()
    latents = vae.encode(pictures).latent_dist.mean.double().transpose(0, 1).flatten(1)
    mean, std = latent_moments(vae, pictures, batch_size=4)
    torch.testing.assert_close(mean, latents.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, latents.std(1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_folding_changes_latents_and_nothing_else(pictures: torch.Tensor, tmp_path: Path) -> None:
    vae = autoencoder()
    before = vae.encode(pictures).latent_dist
    picture = vae.decode(before.mean).sample
    mean, std = latent_moments(vae, pictures)
    fold_latent_moments(vae, mean, std)
    vae.save_pretrained(tmp_path)
    for model in (vae, AutoencoderKL.from_pretrained(tmp_path)):
        assert model.config.scaling_factor == 1
        after = model.encode(pictures).latent_dist
        torch.testing.assert_close(
            after.mean, ((before.mean - mean.view(3, 1, 1)) / std.view(3, 1, 1)).float()
        )
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            after.std, (before.std / std.view(3, 1, 1)).float(), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(model.decode(after.mean).sample, picture, rtol=1e-4, atol=1e-4)


def test_an_autoencoder_without_the_convolutions_is_refused() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(use_quant_conv=False, norm_num_groups=32)
    with pytest.raises(ValueError, match="lacks quant_conv"):
        fold_latent_moments(vae, torch.zeros(4), torch.ones(4))
