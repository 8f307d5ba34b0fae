"""Quantization-aware training of a network: what is learned, and plain integers afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .calls import Call
from .choice import parts_of
from .lrqat import BASES, LowRankWeight
from .lsq import LearnedQuantizer, LearnedScale, LearnedWeight
from .method import swap
from .modules import Quantized
from .plan import make_plan
from .quantizers import StaticQuantizer
from .report import Report, report_of
from .saving import note_quantization
from .spec import Spec
from .weights import IntegerWeight

WAYS = ("lsq", "lrqat", "peqa")


@dataclass(frozen=True)
class Learning:
    """What of a quantized network is learned.

    Attributes:
        way: `lsq`: all parameters of the network and all scales (full training); `lrqat`: low-rank
            updates inside the rounding, and scales; `peqa`: scales alone.
        rank, base, alpha: of `lrqat`, see `LowRankWeight`; `base` also of `peqa`.
        checkpoint: compute weights and rounded inputs anew in the backward pass, layer by layer,
            instead of keeping them.

    Raises:
        ValueError: one line that names the field.
    """

    way: str = "lrqat"
    rank: int = 32
    base: str = "int8"
    alpha: float = 1.0
    checkpoint: bool = True

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"learning.way={self.way}: allowed are {', '.join(WAYS)}")
        if self.base not in BASES:
            raise ValueError(f"learning.base={self.base}: allowed are {', '.join(BASES)}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"learning.rank={self.rank}: must be a whole number, 1 or more")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float):
            raise ValueError(f"learning.alpha={self.alpha}: must be a number")


@dataclass
class Learned:
    """The parameters to train.

    Attributes:
        weights: of layers, or the low-rank matrices.
        scales: of weights and of static activations, as shares of what they begin with.
        report: what is quantized.
    """

    weights: list[nn.Parameter] = field(default_factory=list)
    scales: list[nn.Parameter] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def learn_(
    target: Any, spec: Spec, learning: Learning, calls: Iterable[Call] | None = None
) -> Learned:
    """Quantize a network so that it can be trained; all that is not learned is frozen.

    Scales begin where calibration puts them. The parameters in full precision are given up but for
    `lsq`. `fuse_` ends it.

    Args:
        target: whose parts the spec names; see `quantized`.
        calls: for calibration, see `quantized`.

    Raises:
        ValueError: see `quantized`; or a spec with grids or scales that are not learned.
    """
    _check(spec)
    plan = make_plan(target, spec, calls)
    learned = Learned(report=report_of(plan, None))
    parts = parts_of(target, spec.parts)
    for part in parts.values():
        part.requires_grad_(learning.way == "lsq")
    for layer, twin in plan.twins.values():
        if twin.stored is not None:
            twin.stored = _learned_weight(layer.weight, twin.stored, learning)
        if isinstance(twin.inputs, StaticQuantizer):
            twin.inputs = LearnedQuantizer(twin.inputs)
        twin.checkpointed = learning.checkpoint
    with ExitStack() as stack:
        swap(stack, target, plan)
        stack.pop_all()  # nothing is put back
    for _, twin in plan.twins.values():
        twin.persist()
        if twin.bias is not None:
            twin.bias.requires_grad_(learning.way == "lsq")
        for each in (twin.stored, twin.inputs):
            if isinstance(each, LearnedScale):
                learned.scales.append(each.share)
    for _, processor in plan.processors.values():
        processor.persist()
    scales = {id(scale) for scale in learned.scales}
    learned.weights = [
        p
        for part in parts.values()
        for p in part.parameters()
        if p.requires_grad and id(p) not in scales
    ]
    return learned


def fuse_(target: Any, spec: Spec) -> None:
    """Put plain integers in the place of what was learned; the outputs stay the same to the bit.

    Afterwards the target is as `quantize_` leaves one: `save_pretrained` writes packed integers.

    Raises:
        ValueError: scales that are not finite or not over 0.
    """
    for name, part in parts_of(target, spec.parts).items():
        for path, twin in part.named_modules():
            if not isinstance(twin, Quantized):
                continue
            if isinstance(twin.stored, LearnedWeight | LowRankWeight):
                _check_scale(f"{name}.{path}", twin.stored)
                twin.stored = twin.stored.fused()
                twin.stored.persist()
            if isinstance(twin.inputs, LearnedQuantizer):
                _check_scale(f"{name}.{path}", twin.inputs)
                twin.inputs = twin.inputs.settled()
                twin.inputs.persist()
            twin.checkpointed = False
        note_quantization(part.requires_grad_(False), spec)


def _learned_weight(weight: Any, stored: Any, learning: Learning) -> LearnedWeight | LowRankWeight:
    if not isinstance(stored, IntegerWeight):
        raise ValueError("weights: only integer grids are learned")
    start = (weight, stored.scale, stored.grid, stored.group)
    if learning.way == "lsq":
        return LearnedWeight(*start)
    rank = learning.rank if learning.way == "lrqat" else 0
    return LowRankWeight(*start, rank, learning.base, learning.alpha)


def _check(spec: Spec) -> None:
    every = [spec.weights, *(spec.of_layer(pattern)[0] for pattern in spec.layers)]
    if not all(weights.symmetric for weights in every):
        raise ValueError("weights.symmetric=false: only symmetric grids are learned")
    if any(weights.rounding != "nearest" for weights in every):
        raise ValueError("weights.rounding=gptq: training begins from nearest")
    if spec.time_groups > 1:
        raise ValueError(
            f"time_groups={spec.time_groups}: scales are learned for all timesteps; give 1"
        )
    if spec.bias_correction:
        raise ValueError("bias_correction=true: training corrects what there is to; give false")


def _check_scale(path: str, module: LearnedScale) -> None:
    scale = module.scale
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError(f"{path}: the training diverged, its scales are not all over 0")
