"""How much of an edit was done: from the source towards the true target, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from .bootstrap import bootstrap_mean, paired_difference, ratio_interval

BASELINES = ("mean_colour", "blur", "matched_colour")


@dataclass(frozen=True)
class EditScore:
    """What became of N edits of one group.

    Args:
        psnr, features: (N,) dB, and (N,) distances of features, of each of these from the true
            target: `source`; `edit`; `autoencoder`, its rendering of the true target, the best that
            a latent editor can do; and the `BASELINES`. Higher PSNR is better, lower distance.
        apart, left: (N,) distances of features from the autoencoder's rendering of the true target:
            of its rendering of the source, and of the edit.
        followed, followed_truth: (N,) whether the edit, and whether the autoencoder's rendering of
            the true target, points to an instruction that was asked for, see `pointed_at`.
        chance: (N,) the share of right answers among all.
        subjects: (N,) text; edits of one subject are alike and drawn together in the bootstrap.
        families: (N,) text.
    """

    psnr: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    apart: np.ndarray
    left: np.ndarray
    followed: np.ndarray
    followed_truth: np.ndarray
    chance: np.ndarray
    subjects: np.ndarray
    families: np.ndarray

    def metrics(self, group: str, backbone: str, resamples: int = 2000) -> dict[str, float]:
        """Metric name to value, with `_lo`, `_hi` (95 % bootstrap over subjects) and `_n`.

        `quality/closed_psnr_GROUP` is the share of the gap between source and autoencoder that the
        edit closes: a ratio of means, 0 for the source itself, 1 for the autoencoder's rendering of
        the truth. `quality/psnr_above_BASELINE_GROUP` is the mean difference to a baseline in dB;
        of features, `quality/BACKBONE_below_BASELINE_GROUP`: positive where the edit is better.
        `quality/covered_BACKBONE_GROUP` is the share of the distance between the autoencoder's
        renderings of source and truth that the edit covers: it has a value also where what the
        autoencoder does to a picture outweighs the edit, and the gap above is none.
        """
        found: dict[str, float] = {
            f"quality/pairs_{group}": len(self.subjects),
            f"quality/subjects_{group}": len(np.unique(self.subjects)),
        }
        signed = {
            "psnr": ("above", self.psnr),
            backbone: ("below", {name: -values for name, values in self.features.items()}),
        }
        for measure, (better, scores) in signed.items():
            sign = 1 if better == "above" else -1
            for name, values in scores.items():
                found[f"quality/{measure}_{name}_{group}"] = sign * float(values.mean())
            for name in BASELINES:
                gain = paired_difference(
                    scores["edit"], scores[name], self.subjects, resamples=resamples
                )
                key = f"quality/{measure}_{better}_{name}_{group}"
                found |= {key: gain.value, f"{key}_lo": gain.low, f"{key}_hi": gain.high}
            key = f"quality/closed_{measure}_{group}"
            done = scores["edit"] - scores["source"]
            gap = scores["autoencoder"] - scores["source"]
            found |= {key: closed(done, gap)}
            low, high = ratio_interval(*self._by_subject(done, gap), resamples=resamples)
            found |= {f"{key}_lo": low, f"{key}_hi": high, f"{key}_n": len(done)}
            for family in np.unique(self.families):
                rows = self.families == family
                found[f"{key}_{family}"] = closed(done[rows], gap[rows])
        key, done = f"quality/covered_{backbone}_{group}", self.apart - self.left
        low, high = ratio_interval(*self._by_subject(done, self.apart), resamples=resamples)
        found |= {key: closed(done, self.apart), f"{key}_lo": low, f"{key}_hi": high}
        found[f"{key}_n"] = len(done)
        key = f"quality/followed_{group}"
        right = bootstrap_mean(self.followed.astype(float), self.subjects, resamples=resamples)
        found |= {key: right.value, f"{key}_lo": right.low, f"{key}_hi": right.high}
        found[f"{key}_n"] = right.n
        found[f"{key}_truth"] = float(self.followed_truth.mean())
        found[f"{key}_chance"] = float(self.chance.mean())
        for family in np.unique(self.families):
            rows = self.families == family
            found[f"{key}_{family}"] = float(self.followed[rows].mean())
            found[f"{key}_{family}_n"] = int(rows.sum())
        return found

    def gains(self, group: str, backbone: str) -> dict[str, np.ndarray]:
        """By metric, (N,) of single edits: what they gained on the source, and whether they follow.

        PSNR and distance of features from the true target, and the way covered, as in `metrics`.
        Of two models whose edits are judged through one renderer, the ratio of the means is the
        ratio of the shares in `metrics`.
        """
        found = {
            "closed_psnr": self.psnr["edit"] - self.psnr["source"],
            f"closed_{backbone}": self.features["source"] - self.features["edit"],
            f"covered_{backbone}": self.apart - self.left,
            "followed": self.followed.astype(float),
        }
        return {f"quality/{name}_{group}": values for name, values in found.items()}

    def _by_subject(self, *values: np.ndarray) -> list[np.ndarray]:
        _, subject = np.unique(self.subjects, return_inverse=True)
        return [np.bincount(subject, each) for each in values]


def closed(done: np.ndarray, gap: np.ndarray) -> float:
    """Share of the mean gap that is closed; NaN where the mean gap is not positive."""
    return float(done.mean() / gap.mean()) if gap.mean() > 0 else float("nan")


def pointed_at(direction: Tensor, candidates: Tensor) -> int:
    """Which of the candidate directions in feature space is nearest, by the cosine.

    As StyleGAN-NADA's directional similarity (Gal et al. 2022), between pictures alone.

    Args:
        direction: (D,) features of an edit minus those of its source.
        candidates: (K, D) features of the true targets of K instructions minus the source's, K ≥ 1.
    """
    return int((functional.normalize(candidates, dim=1) @ direction).argmax())
