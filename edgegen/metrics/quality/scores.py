"""The scores that an evaluation can give its pictures; each is a `Score` of `evaluation`."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import Metric

from .backbone import load_backbone, name_of
from .clip import Clip
from .concept_score import ACCURACY, COPIES
from .distribution import AXES, compare_features
from .efflite0 import EffLite0
from .evaluation import Material, Score, Scores, picture_batches
from .paired import feature_errors, pixel_errors
from .samples import SampleMetric
from .text import clip_score, load_clip

_CAPTIONS = 32  # read at once


class PairedScore:
    """Root mean square difference of pairs, in pixels and in features; see `PairedError`."""

    needs = ("pairs",)

    def __init__(self, backbone: nn.Module | str | Path = "efflite0") -> None:
        self.backbones = (load_backbone(backbone),)

    def names(self, material: Material) -> tuple[str, ...]:
        """`quality/ode_rmse` and `quality/ode_BACKBONE`, or `paired_…`."""
        kinds = "rmse", name_of(self.backbones[0])
        return tuple(f"quality/{material.pair_name}_{kind}" for kind in kinds)

    def __call__(self, material: Material) -> Scores:
        assert material.pairs is not None
        pixels, features = self.names(material)
        found = Scores()
        errors = [
            pixel_errors(*sides) for _, sides in picture_batches(material.pictures, material.pairs)
        ]
        found.add(pixels, torch.cat(errors).numpy(), material)
        sides = [material.features(self.backbones[0], of) for of in ("pictures", "pairs")]
        found.add(features, feature_errors(*sides).numpy(), material)
        return found


class DistributionScore:
    """Distances to the reference as sets; see `Distribution` for names and arguments."""

    needs = ("reference",)

    def __init__(
        self,
        backbone: nn.Module | str | Path = "efflite0",
        *,
        all_features: bool = True,
        resamples: int = 200,
        neighbours: int = 3,
    ) -> None:
        self.backbones = (load_backbone(backbone),)
        self.options: dict[str, Any] = {
            "all_features": all_features,
            "resamples": resamples,
            "neighbours": neighbours,
        }

    def names(self, material: Material) -> tuple[str, ...]:
        """Fréchet distances, kernel distance, precision and recall."""
        name = name_of(self.backbones[0])
        kinds = [f"fd_pca{AXES}_{name}", *(f"{k}_{name}" for k in ("kid", "precision", "recall"))]
        if self.options["all_features"]:
            kinds.append("fid" if name == "inception" else f"fd_{name}")
        return tuple(f"quality/{kind}" for kind in kinds)

    def __call__(self, material: Material) -> Scores:
        backbone = self.backbones[0]
        generated, reference = (material.features(backbone, x) for x in ("pictures", "reference"))
        found = compare_features(
            generated, reference, name_of(backbone), clusters=material.clusters, **self.options
        )
        return Scores({name: value.item() for name, value in found.items()})


class TextScore:
    """`quality/clip_NAME`: 100 · cos of picture and prompt; see `ClipScore`.

    Args:
        clip: folder or hub id of what judges; None leaves it out.
        name: NAME; None takes that of folder or hub id.
    """

    def __init__(self, clip: Clip | str | Path | None = None, name: str | None = None) -> None:
        self.clip = None if clip is None else load_clip(clip, name)
        self.backbones = () if self.clip is None else (self.clip,)
        self.needs = ("clip",) if self.clip is None else ("prompts",)

    def names(self, material: Material) -> tuple[str, ...]:
        """One name."""
        name = "score" if self.clip is None else self.clip.name
        return (f"quality/{name if name.startswith('clip_') else f'clip_{name}'}",)

    def __call__(self, material: Material) -> Scores:
        if self.clip is None or material.prompts is None:
            raise ValueError("no CLIP is given that could judge: metrics.text.clip=FOLDER")
        pictures = functional.normalize(material.features(self.clip), dim=-1)
        unlike = list(dict.fromkeys(material.prompts))
        parts = [unlike[start : start + _CAPTIONS] for start in range(0, len(unlike), _CAPTIONS)]
        texts = torch.cat([self.clip.captions(part).cpu() for part in parts])
        rows = torch.tensor([unlike.index(prompt) for prompt in material.prompts])
        found = Scores()
        values = clip_score(pictures.double(), texts[rows].double())
        found.add(self.names(material)[0], values.numpy(), material)
        return found


class ConceptAccuracy:
    """Share of pictures that show what was asked, and of copies; see `ConceptScore`.

    Args:
        nearest: real pictures looked at.
        resamples: of captions, for the intervals.
    """

    needs = ("judge",)

    def __init__(self, nearest: int = 5, resamples: int = 2000) -> None:
        self.nearest, self.resamples = nearest, resamples
        self.backbones = (EffLite0(),)

    def names(self, material: Material) -> tuple[str, ...]:
        """Accuracy, the same relative to real pictures, and copy rate."""
        return ACCURACY, f"{ACCURACY}_relative", COPIES

    def __call__(self, material: Material) -> Scores:
        assert material.judge is not None
        features = material.features(self.backbones[0])
        seeds = 1
        if material.clusters is not None:
            seeds = len(features) // len(np.unique(material.clusters))
        score = material.judge.score(features, seeds, self.nearest)
        found = Scores(score.metrics(self.resamples))
        found.rows[ACCURACY] = score.correct.reshape(-1).astype(float)
        found.rows[COPIES] = score.copied.reshape(-1).astype(float)
        if f"{ACCURACY}_relative" not in found.metrics:
            found.notes[f"{ACCURACY}_relative"] = "no real picture of the asked ones is found right"
        return found


class StreamedScore:
    """Any torchmetrics `Metric`, fed by what the arguments of its `update` are called.

    `reference`, `truth` or `target` are the pairs, `captions` the prompts, and with `real` it is
    given the reference too. Any other first argument is the pictures, (B, 3, H, W) in [0, 1].

    Args:
        name: of the result where the metric gives one number without a name.
    """

    backbones: tuple[nn.Module, ...] = ()

    def __init__(self, metric: Metric, name: str) -> None:
        self.metric, self.name = metric, name
        self.takes = _takes(metric)
        self.pair = next((x for x in ("reference", "truth", "target") if x in self.takes), None)
        kinds = {"pairs": self.pair, "prompts": "captions", "reference": "real"}
        self.needs = tuple(kind for kind, takes in kinds.items() if takes in self.takes)

    def names(self, material: Material) -> tuple[str, ...]:
        """Those of a `SampleMetric`, else the one given."""
        found = getattr(self.metric, "names", None)
        return tuple(found) if found else (f"quality/{self.name}",)

    def __call__(self, material: Material) -> Scores:
        pairs = material.pairs if self.pair else None
        assert self.pair is None or pairs is not None
        self.metric.reset()
        for places, sides in picture_batches(
            material.pictures, *([pairs] if pairs is not None else [])
        ):
            extra: dict[str, Any] = {self.pair: sides[1]} if self.pair else {}
            if "captions" in self.takes:
                assert material.prompts is not None
                extra["captions"] = [material.prompts[place] for place in places]
            if "indices" in self.takes:
                extra["indices"] = torch.tensor(places)
            if "real" in self.takes:
                extra["real"] = False
            self.metric.update(sides[0], **extra)
        if "real" in self.takes:
            assert material.reference is not None
            for _, (part,) in picture_batches(material.reference):
                self.metric.update(part, real=True)
        if isinstance(self.metric, SampleMetric):
            rows, _ = self.metric.samples()
            found = Scores()
            for name, column in zip(self.metric.names, rows.numpy().T, strict=True):
                found.add(name, column, material)
            return found
        value = self.metric.compute()
        named = value if isinstance(value, dict) else {f"quality/{self.name}": value}
        return Scores({key: float(each) for key, each in named.items()})


class WholeClipScore:
    """A torchmetrics `Metric` whose `update` takes a whole clip, and the clip that it should equal.

    The pictures are the frames of one clip, all of one size. Such are `VMAF` and `VideoScores`.
    """

    backbones: tuple[nn.Module, ...] = ()

    def __init__(self, metric: SampleMetric) -> None:
        self.metric = metric
        self.needs: tuple[str, ...] = ("pairs",) if "reference" in _takes(metric) else ()

    def names(self, material: Material) -> tuple[str, ...]:
        """The metric's own."""
        return tuple(self.metric.names)

    def __call__(self, material: Material) -> Scores:
        self.metric.reset()
        sets = [material.pictures] + ([] if material.pairs is None else [material.pairs])
        clips = [torch.cat([part for _, (part,) in picture_batches(frames)]) for frames in sets]
        more = {"captions": material.captions} if "captions" in _takes(self.metric) else {}
        self.metric.update(*clips, **more, index=0)
        rows, _ = self.metric.samples()
        found = Scores()
        for name, value in zip(self.metric.names, rows[0].tolist(), strict=True):
            if not math.isnan(value):
                found.metrics[name] = value
            elif "pairs" in material.missing and not name.startswith("video/frame_acc"):
                found.notes[name] = material.missing["pairs"]
            else:
                found.notes[name] = material.missing.get("captions", "not a number")
        return found


def score_of(given: Any, name: str) -> Score:
    """A `Score` as it is, and a torchmetrics `Metric` as the one that feeds it.

    Raises ValueError for anything else.
    """
    if isinstance(given, SampleMetric) and "index" in _takes(given):
        return WholeClipScore(given)
    if isinstance(given, Metric):
        return StreamedScore(given, name)
    if not all(hasattr(given, part) for part in ("needs", "backbones", "names")):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        raise ValueError(f"metrics.{name}: {kind} is no score and no torchmetrics Metric")
    return given


def _takes(metric: Metric) -> tuple[str, ...]:
    return tuple(inspect.signature(metric.update).parameters)
