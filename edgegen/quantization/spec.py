"""What to quantize and how, as plain data: the YAML of `configs/method` and what is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from . import quantizers, ranges, weights
from .grids import Grid

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "transformer")
ROUNDINGS = ("nearest", "gptq")
TIME_EMBEDDINGS = ("finite", "calls", "keep")
DIMENSIONS = (1, 2, 4)
BLOCKS = (16, 32, 64, 128, 256)
_INDEX_BITS = 12  # at most, of an index into a codebook


@dataclass(frozen=True)
class WeightSpec:
    """How weights are quantized.

    Attributes:
        bits: 2 to 8 or 16; None leaves them alone.
        symmetric: whether 0 lies in the middle of the grid.
        granularity: what shares a scale: `tensor`, `channel` (of the output) or `group`.
        group: values in a group, along the row C_in·k² of an output channel.
        range: `minmax`, `percentile`, `mse` or `lp`; with `percentile` (of the values) and `p`.
        rounding: `nearest`, or `gptq` (arXiv 2210.17323), which needs calibration calls, and memory
            for a (C_in·k²)² matrix of float32 a layer, of all layers at once.
        vector: dimension of codebook vectors, 1, 2 or 4; None for integers. Codebooks of
            2^(vector·bits) vectors are found by k-means (`nearest`) or GPTVQ (`gptq`,
            arXiv 2402.15319); all fields above but `bits` and `rounding` are without effect then.
        codebook_bits: that codebooks may take, of each value: the fewer, the more values share one.
        block: values in a row that share a 4-bit scale before vectors are looked up; or None.
    """

    bits: int | None = 8
    symmetric: bool = True
    granularity: str = "channel"
    group: int = 64
    range: str = "minmax"
    percentile: float = 99.99
    p: float = 2.4
    rounding: str = "nearest"
    vector: int | None = None
    codebook_bits: float = 0.125
    block: int | None = None

    def check(self, place: str) -> None:
        _check_grid(place, self)
        _check_name(f"{place}.granularity", self.granularity, weights.GRANULARITIES)
        _check_name(f"{place}.rounding", self.rounding, ROUNDINGS)
        _check_whole(f"{place}.group", self.group, 1)
        if self.vector is not None:
            self._check_vectors(place)

    def _check_vectors(self, place: str) -> None:
        if self.vector not in DIMENSIONS:
            raise ValueError(f"{place}.vector={self.vector}: allowed are 1, 2, 4, or null")
        if self.bits is not None and self.bits * self.vector > _INDEX_BITS:
            raise ValueError(
                f"{place}.bits={self.bits}: with vector={self.vector} at most "
                f"{_INDEX_BITS // self.vector}"
            )
        if not isinstance(self.codebook_bits, int | float) or not self.codebook_bits > 0:
            raise ValueError(f"{place}.codebook_bits={self.codebook_bits}: must be over 0")
        if self.block is not None and self.block not in BLOCKS:
            allowed = ", ".join(map(str, BLOCKS))
            raise ValueError(f"{place}.block={self.block}: allowed are {allowed}, or null")


@dataclass(frozen=True)
class ActivationSpec:
    """How the inputs of layers are quantized.

    Attributes:
        bits: 2 to 8 or 16; None leaves them alone.
        symmetric: whether 0 lies in the middle of the grid.
        granularity: `tensor`, or `token`: a range for each vector that a linear layer takes, and
            for each sample that a convolution takes, whose windows mix tokens.
        dynamic: ranges as met (True) or from calibration (False). None: dynamic by token.
        range: `minmax`, `percentile`, `mse` or `lp`; with `percentile` (of the values) and `p`.
        split_skips: whether skip connections, joined to the input of up blocks, have a static
            scale of their own; dynamic ones are of the whole.
    """

    bits: int | None = 8
    symmetric: bool = False
    granularity: str = "tensor"
    dynamic: bool | None = None
    range: str = "minmax"
    percentile: float = 99.99
    p: float = 2.4
    split_skips: bool = True

    @property
    def is_dynamic(self) -> bool:
        return self.granularity == "token" if self.dynamic is None else self.dynamic

    def check(self, place: str) -> None:
        _check_grid(place, self)
        _check_name(f"{place}.granularity", self.granularity, quantizers.GRANULARITIES)
        if self.dynamic is False and self.granularity == "token":
            raise ValueError(f"{place}.dynamic=false: scales by token are dynamic")


@dataclass(frozen=True)
class CalibrationSpec:
    """The runs of the pipeline itself that static scales and GPTQ are drawn from.

    Attributes:
        prompts: one picture each.
        steps: of each run; all are looked at.
        seed: of the noise.
        guidance: None for the pipeline's own; commands then take what pictures are made at.
        images: files of pictures, in turn for the prompts; for pipelines that edit pictures.
        image_guidance: as `guidance`, by the picture.
        store: a folder that keeps the calls, so that the next quantization of the same pipeline
            makes none; it is in no saved model.
    """

    prompts: tuple[str, ...] = ("",)
    steps: int = 10
    seed: int = 0
    guidance: float | None = None
    images: tuple[str, ...] = ()
    image_guidance: float | None = None
    store: str | None = None

    def check(self, place: str) -> None:
        _check_whole(f"{place}.steps", self.steps, 1)
        _check_whole(f"{place}.seed", self.seed, 0)
        if not self.prompts or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"{place}.prompts={list(self.prompts)}: must be one text or more")
        if self.store is not None and not isinstance(self.store, str):
            raise ValueError(f"{place}.store={self.store}: must be a folder")


@dataclass(frozen=True)
class Spec:
    """How to quantize a pipeline.

    Attributes:
        weights, activations: of linear layers and convolutions.
        attention: bits of the four operands of the attention products (queries, keys,
            probabilities, values), otherwise as `activations` has it; None leaves them alone.
        parts: which networks: `unet`, `vae`, `text_encoder`, `text_encoder_2`, `transformer`.
        include, exclude: patterns of module paths such as `unet.up_blocks.*.attn2.*`.
        layers: pattern → `{weights: …, activations: …}` that differ there; the last that fits
            counts.
        first_last: the first and the last convolution of UNet and autoencoder: `keep` in full
            precision, `same` as all others, or the least bits of their weights (then integers) and
            inputs.
        time_groups: static scales of the UNet's inputs for so many groups of timesteps.
        time_embedding: the layers that see the timestep alone: ranges over the `finite` set of
            timesteps (TFMQ-DM, arXiv 2311.16503), from the calibration `calls` as elsewhere, or
            `keep` in full precision.
        bias_correction: whether the mean error of each output channel is taken off its bias.
        calibration: see `CalibrationSpec`.
    """

    weights: WeightSpec = field(default_factory=WeightSpec)
    activations: ActivationSpec = field(default_factory=ActivationSpec)
    attention: int | None = None
    parts: tuple[str, ...] = ("unet",)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    first_last: str | int = 8
    time_groups: int = 1
    time_embedding: str = "finite"
    bias_correction: bool = False
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)

    def __post_init__(self) -> None:
        self.weights.check("weights")
        self.activations.check("activations")
        self.calibration.check("calibration")
        if self.attention is not None:
            Grid(self.attention)
        if unknown := [part for part in self.parts if part not in PARTS] or not self.parts:
            raise ValueError(f"parts={unknown}: allowed are {', '.join(PARTS)}")
        if self.first_last not in ("keep", "same"):
            if not isinstance(self.first_last, int):
                raise ValueError(f"first_last={self.first_last}: allowed are keep, same, or bits")
            Grid(self.first_last)
        _check_whole("time_groups", self.time_groups, 1)
        if self.activations.is_dynamic and self.time_groups > 1:
            raise ValueError(f"time_groups={self.time_groups}: dynamic scales need no groups")
        _check_name("time_embedding", self.time_embedding, TIME_EMBEDDINGS)
        for pattern in self.layers:
            self._of_pattern(pattern, self.weights, self.activations)

    def covers(self, path: str) -> bool:
        """Whether a module path is included and not excluded."""
        fits = any(fnmatchcase(path, pattern) for pattern in self.include)
        return fits and not any(fnmatchcase(path, pattern) for pattern in self.exclude)

    def of_layer(self, path: str, end: bool = False) -> tuple[WeightSpec, ActivationSpec]:
        """What holds for one layer; `end`: it is the first or the last of its part."""
        weights, activations = self.weights, self.activations
        if end and self.first_last == "keep":
            weights, activations = replace(weights, bits=None), replace(activations, bits=None)
        elif end and self.first_last != "same":
            least = int(self.first_last)
            if weights.bits is not None and weights.bits < least:
                weights = replace(weights, bits=least, vector=None)
            if activations.bits is not None:
                activations = replace(activations, bits=max(activations.bits, least))
        for pattern in self.layers:
            if fnmatchcase(path, pattern):
                weights, activations = self._of_pattern(pattern, weights, activations)
        return weights, activations

    def _of_pattern(
        self, pattern: str, weights: WeightSpec, activations: ActivationSpec
    ) -> tuple[WeightSpec, ActivationSpec]:
        place, given = f"layers.{pattern}", self.layers[pattern]
        check_keys(place, given, ("weights", "activations"))
        weights = changed(f"{place}.weights", weights, given.get("weights", {}))
        activations = changed(f"{place}.activations", activations, given.get("activations", {}))
        weights.check(f"{place}.weights")
        activations.check(f"{place}.activations")
        return weights, activations

    def patterns(self) -> list[str]:
        """Of everything that must be there in the model."""
        return [*self.include, *self.exclude, *self.layers]

    def plain(self) -> dict[str, Any]:
        """As JSON and YAML hold it; `parse_spec` reads it."""
        return json.loads(json.dumps(asdict(self)))


def changed(place: str, base: Any, changes: Any) -> Any:
    """A nested spec with other values in some fields; `place` names it in errors."""
    if isinstance(changes, type(base)):
        return changes
    check_keys(place, changes, [each.name for each in fields(base)])
    made = dict(changes)
    for key in ("prompts", "images"):
        if key in made:
            made[key] = texts(f"{place}.{key}", made[key])
    return replace(base, **made)


def texts(place: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or a single one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{place}={value}: must be a list of texts")
    return tuple(value)


def check_keys(place: str, given: Any, allowed: Sequence[str]) -> None:
    """`ValueError` where `given` is no mapping or holds another key."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{place}={given}: must be a mapping with {', '.join(allowed)}")
    for key in given:
        if key not in allowed:
            name = f"{place}.{key}".lstrip(".")
            raise ValueError(f"{name}: unknown, allowed are {', '.join(allowed)}")


def _check_grid(place: str, spec: Any) -> None:
    if spec.bits is not None:
        try:
            Grid(spec.bits)
        except ValueError as error:
            raise ValueError(f"{place}.{error}") from error
    _check_name(f"{place}.range", spec.range, ranges.METHODS)
    if not isinstance(spec.percentile, int | float) or not 50 < spec.percentile <= 100:
        raise ValueError(f"{place}.percentile={spec.percentile}: must be over 50 and at most 100")
    if not isinstance(spec.p, int | float) or not spec.p > 0:
        raise ValueError(f"{place}.p={spec.p}: must be over 0")


def _check_name(place: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{place}={value}: allowed are {', '.join(allowed)}")


def _check_whole(place: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{place}={value}: must be a whole number, {least} or more")
