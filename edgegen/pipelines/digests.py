"""What a pipeline is, in one number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn


def pipeline_digest(pipe: DiffusionPipeline) -> str:
    """SHA-256 over a pipeline's weights, their modules' configuration, and its vocabulary."""
    digest = hashlib.sha256()
    for name, module in sorted(pipe.components.items()):
        if hasattr(module, "get_vocab"):
            digest.update(_json([name, module.get_vocab(), module.model_max_length]).encode())
        if not isinstance(module, nn.Module):
            continue
        config: Any = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Where a model was read from changes nothing.
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        digest.update(_json([name, type(module).__name__, config]).encode())
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)
