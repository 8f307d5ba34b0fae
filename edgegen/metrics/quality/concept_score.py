"""Concept accuracy and copy rate of a set of pictures, as metrics with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bootstrap import ratio_interval

ACCURACY, COPIES = "quality/concept_accuracy", "quality/copy_rate"


@dataclass(frozen=True)
class ConceptScore:
    """What became of C captions with S pictures each.

    Args:
        correct: (C, S) bool, see `Gallery.correct`.
        copied: (C, S) bool, see `copies`.
        real: (C,) bool: whether the real picture that the caption names would itself be right,
            under the same exclusions. Their share is the ceiling.
        styles: (C,) text.
    """

    correct: np.ndarray
    copied: np.ndarray
    real: np.ndarray
    styles: np.ndarray

    def metrics(self, resamples: int = 2000) -> dict[str, float]:
        """Metric name to share, with `_lo` and `_hi`, the ends of 95 % bootstrap intervals.

        Captions are resampled, each with all of its pictures: `_n` counts captions. The relative
        accuracy is that of the pictures over that of the real ones, on the same captions; it is
        missing where no real picture is right.
        """
        captions, each = self.correct.shape
        right, size = self.correct.sum(1), np.full(captions, each)
        ratios = {
            ACCURACY: (right, size),
            f"{ACCURACY}_real": (self.real, np.ones(captions)),
            COPIES: (self.copied.sum(1), size),
        }
        if self.real.any():
            ratios[f"{ACCURACY}_relative"] = (right, self.real * each)
        found: dict[str, float] = {f"{ACCURACY}_n": captions, f"{COPIES}_n": captions}
        for name, (above, below) in ratios.items():
            found[name] = float(above.sum() / below.sum())
            ends = ratio_interval(above, below, resamples=resamples)
            found[f"{name}_lo"], found[f"{name}_hi"] = ends
        for style in np.unique(self.styles):
            rows, label = self.styles == style, str(style).replace("-", "_")
            found[f"{ACCURACY}_{label}"] = float(self.correct[rows].mean())
            found[f"{ACCURACY}_{label}_n"] = int(rows.sum())
            found[f"{ACCURACY}_real_{label}"] = float(self.real[rows].mean())
        return found
