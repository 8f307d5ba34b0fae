from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """0.80 M parameters, random weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


@pytest.fixture
def unet_inputs() -> tuple[torch.Tensor, ...]:
    """Sample (2, 4, 32, 32), timestep, text (2, 77, 48)."""
    return torch.zeros(2, 4, 32, 32), torch.tensor(1), torch.zeros(2, 77, 48)
