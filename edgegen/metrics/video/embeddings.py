"""How a clip holds over time and follows the text, from unit embeddings of its frames.

Copying the source, or freezing the first frame, maximises every consistency here: report them only
beside a measure of the edit (`frame_accuracy`, `DirectionalSimilarity`). Several of these go under
one name in the literature and are different numbers.

Frames are (T, D) embeddings; each function normalises them itself and computes in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def frame_consistency(frames: Tensor) -> float:
    """TGVE frame consistency: mean of cos(e_i, e_j) over all pairs of frames i ≠ j.

    In [-1, 1]. Source: Wu et al. 2023, "CVPR 2023 Text Guided Video Editing Competition", with CLIP
    image embeddings.
    """
    unit = _unit(frames, least=2)
    count = len(unit)
    pairs = unit @ unit.T
    return ((pairs.sum() - pairs.diagonal().sum()) / (count * (count - 1))).item()


def tem_con(frames: Tensor) -> float:
    """Tem-Con: mean of cos(e_t, e_(t+1)) over consecutive frames.

    In [-1, 1]. Source: Qi et al. 2023 (FateZero) and Wu et al. 2023 (Fairy), with CLIP image
    embeddings.
    """
    unit = _unit(frames, least=2)
    return (unit[:-1] * unit[1:]).sum(1).mean().item()


def frame_accuracy(frames: Tensor, source_caption: Tensor, target_caption: Tensor) -> float:
    """Frame-Acc: share of frames nearer to the target's caption than to the source's.

    A frame counts where cos(e_t, t_target) > cos(e_t, t_source); a tie does not. In [0, 1].
    Source: Qi et al. 2023 (FateZero) and Wu et al. 2023 (Fairy).

    Args:
        frames: (T, D) CLIP image embeddings of the edited clip.
        source_caption, target_caption: (D,) CLIP text embeddings.
    """
    unit = _unit(frames, least=1)
    captions = _unit(torch.stack([source_caption, target_caption]).to(frames.device), least=2)
    similarity = unit @ captions.T
    return (similarity[:, 1] > similarity[:, 0]).double().mean().item()


def subject_consistency(frames: Tensor) -> float:
    """VBench subject consistency: how near frames are to the one before and to the first.

    Mean over t ≥ 2 of ½ [max(0, cos(e_t, e_(t-1))) + max(0, cos(e_t, e_1))]. In [0, 1]. Source:
    Huang et al. 2024 (VBench), with DINO features of the frames; with another backbone the number
    is another, so its name carries the backbone.
    """
    unit = _unit(frames, least=2)
    previous = (unit[1:] * unit[:-1]).sum(1).clamp(min=0)
    first = (unit[1:] @ unit[0]).clamp(min=0)
    return ((previous + first) / 2).mean().item()


def _unit(frames: Tensor, *, least: int) -> Tensor:
    if frames.ndim != 2 or len(frames) < least:
        raise ValueError(f"{least} embeddings or more, (T, D), are needed: {tuple(frames.shape)}")
    return functional.normalize(frames.double(), dim=1)
