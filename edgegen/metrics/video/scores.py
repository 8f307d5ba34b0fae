"""All measures of an edited clip as one metric, since they share the embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..quality.backbone import BATCH, features_of, load_backbone, name_of
from ..quality.clip import Clip
from ..quality.samples import SampleMetric
from ..quality.text import directional_similarity, load_clip
from .embeddings import frame_accuracy, frame_consistency, subject_consistency, tem_con
from .pixels import Flow, flicker, warp_error


class VideoScores(SampleMetric):
    """Means over clips, each weighing the same, of consistency and of the edit side by side.

    Names: `video/frame_consistency_CLIP`, `video/tem_con_CLIP`, `video/frame_acc_CLIP`,
    `video/directional_CLIP` (mean over frames), `video/subject_consistency_BACKBONE`,
    `video/flicker` and, with a flow, `video/warp_error`. What a clip does not allow (no captions,
    no source) is left out of the mean, and `_n` says of how many clips it is.

    Args:
        clip: judge of frames and captions: `Clip`, folder or hub id; None leaves its scores out.
        subject: backbone of the subject consistency, as `load_backbone` takes it (VBench: DINO).
        flow: such as `flow.dis_flow`; None leaves the warp error out.
        batch: how many frames a backbone sees at once.
    """

    def __init__(
        self,
        clip: Clip | str | Path | None = None,
        *,
        subject: nn.Module | str | Path = "efflite0",
        flow: Flow | None = None,
        batch: int = BATCH,
        **options: Any,
    ) -> None:
        judge = None if clip is None else load_clip(clip)
        backbone = load_backbone(subject)
        names = [f"video/subject_consistency_{name_of(backbone)}", "video/flicker"]
        if flow is not None:
            names.append("video/warp_error")
        if judge is not None:
            kinds = "frame_consistency", "tem_con", "frame_acc", "directional"
            names += [f"video/{kind}_{judge.name}" for kind in kinds]
        super().__init__(tuple(names), **options)
        self.clip, self.subject, self.flow, self.batch = judge, backbone, flow, batch

    def update(
        self,
        edited: Tensor,
        source: Tensor | None = None,
        captions: tuple[str, str] | None = None,
        index: int | None = None,
    ) -> None:
        """Add one clip.

        Args:
            edited, source: (T, 3, H, W) floats in [0, 1], of one shape; T ≥ 2.
            captions: what the source shows and what the edited clip should show (captions both, no
                instruction).
            index: the clip's place among all, see `SampleMetric`.
        """
        found = [
            subject_consistency(features_of(self.subject, edited, self.batch)),
            flicker(edited),
        ]
        if self.flow is not None:
            found.append(float("nan") if source is None else warp_error(source, edited, self.flow))
        if self.clip is not None:
            found += self._judged(self.clip, edited, source, captions)
        row = torch.tensor([found], dtype=torch.float64)
        self._keep(row, None if index is None else torch.tensor([index]))

    def _judged(
        self, clip: Clip, edited: Tensor, source: Tensor | None, captions: tuple[str, str] | None
    ) -> list[float]:
        frames = features_of(clip, edited, self.batch)
        accuracy = directional = float("nan")
        if captions is not None:
            texts = clip.captions(captions)
            accuracy = frame_accuracy(frames, texts[0], texts[1])
            if source is not None:
                before, after = clip.pictures(source), clip.pictures(edited)
                directions = directional_similarity(before, after, texts[:1], texts[1:])
                directional = directions.mean().item()
        return [frame_consistency(frames), tem_con(frames), accuracy, directional]
