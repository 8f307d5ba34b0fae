"""The contrastive loss of CLIP (Radford et al. 2021, Figure 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, groups: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's similarities.

    Args:
        images, texts: (B, D) embeddings, normalised here.
        log_scale: () logarithm of the inverse temperature.
        groups: (B,) integers; other entries of the same group (same caption) are no negatives.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = log_scale.exp() * images @ texts.T
    same = groups[:, None] == groups[None]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, torch.finfo(logits.dtype).min)
    target = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
