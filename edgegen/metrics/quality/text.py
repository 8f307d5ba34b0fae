"""Do pictures show what the text says, and do edits go where the text goes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from .backbone import short_name
from .clip import Clip
from .samples import SampleMetric


def clip_score(pictures: Tensor, captions: Tensor) -> Tensor:
    """100 · cos of unit embeddings, (B, D) both, to (B,) (Hessel et al. 2021, as torchmetrics)."""
    return 100 * (pictures * captions).sum(1)


def directional_similarity(
    before: Tensor, after: Tensor, caption_before: Tensor, caption_after: Tensor
) -> Tensor:
    """cos(e_after − e_before, t_after − t_before) of unit embeddings, (B, D) each, to (B,).

    The texts describe the two pictures; they are no instructions. 0 where picture or caption did
    not change. Source: Gal et al. 2022 (StyleGAN-NADA), as InstructPix2Pix uses it (Brooks et al.
    2023).
    """
    return functional.cosine_similarity(after - before, caption_after - caption_before, dim=1)


def load_clip(clip: Clip | str | Path, name: str | None = None) -> Clip:
    """A `Clip`, from itself, a folder or a hub id; `name` by default that of folder or hub id."""
    if isinstance(clip, Clip):
        return clip
    return Clip(clip, name=name or short_name(clip))


class ClipScore(SampleMetric):
    """`quality/clip_NAME`: mean of 100 · cos(picture, caption).

    Args:
        clip: what judges, such as `Clip(folder, name="judge")`, a folder or a hub id.
        name: NAME, where `clip` is no `Clip`; default that of folder or hub id.
    """

    higher_is_better = True

    def __init__(self, clip: Clip | str | Path, name: str | None = None, **options: Any) -> None:
        clip = load_clip(clip, name)
        super().__init__((f"quality/{_prefixed(clip.name)}",), **options)
        self.clip = clip

    def update(
        self, pictures: Tensor, captions: Sequence[str], indices: Tensor | None = None
    ) -> None:
        """Add (B, 3, H, W) pictures, floats in [0, 1], and B captions; see `SampleMetric`."""
        _same_count(len(pictures), len(captions))
        score = clip_score(self.clip.pictures(pictures), self.clip.captions(captions))
        self._keep(score[:, None], indices)


class DirectionalSimilarity(SampleMetric):
    """`quality/directional_NAME`: see `directional_similarity`; arguments as of `ClipScore`."""

    higher_is_better = True

    def __init__(self, clip: Clip | str | Path, name: str | None = None, **options: Any) -> None:
        clip = load_clip(clip, name)
        super().__init__((f"quality/directional_{clip.name}",), **options)
        self.clip = clip

    def update(
        self,
        before: Tensor,
        after: Tensor,
        captions_before: Sequence[str],
        captions_after: Sequence[str],
        indices: Tensor | None = None,
    ) -> None:
        """Add (B, 3, H, W) source and edited pictures and B captions of each."""
        _same_count(len(before), len(after), len(captions_before), len(captions_after))
        score = directional_similarity(
            self.clip.pictures(before),
            self.clip.pictures(after),
            self.clip.captions(captions_before),
            self.clip.captions(captions_after),
        )
        self._keep(score[:, None], indices)


def _prefixed(name: str) -> str:
    return name if name.startswith("clip_") else f"clip_{name}"


def _same_count(*counts: int) -> None:
    if len(set(counts)) > 1:
        numbers = ", ".join(map(str, counts))
        raise ValueError(f"pictures and captions must be as many, got {numbers}")
