"""How much each layer of a UNet minds being quantized, timestep by timestep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..cost import count
from .calibration import network
from .calls import Call
from .choice import parts_of
from .method import swap
from .modules import twin_of
from .plan import Plan, make_plan
from .spec import Spec

KINDS = ("weights", "activations", "both")


@dataclass
class LayerSensitivity:
    """What a layer's quantization alone does to the model's output.

    Attributes:
        path: with the part's name in front.
        kind: `Linear` or `Conv2d`.
        values: weights.
        macs: of one call on one sample.
        stored_bytes: bits of the weights → bytes that they take, scales and biases included.
        errors: one of `KINDS` → bits → ‖ŷ − y‖² / ‖y‖² of the model's output y, a timestep each.
    """

    path: str
    kind: str
    values: int
    macs: int
    plain_bytes: int
    stored_bytes: dict[int, int] = field(default_factory=dict)
    errors: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def mean(self, kind: str, bits: int) -> float:
        """The error, averaged over timesteps."""
        found = self.errors[kind][bits]
        return sum(found) / len(found)


@dataclass
class Sensitivity:
    """Of all layers; `times` are the timesteps (in training timesteps), noise first."""

    times: list[float]
    layers: list[LayerSensitivity]
    skipped: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "timesteps": self.times,
            "layers": [vars(layer) for layer in self.layers],
            "skipped": self.skipped,
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Sensitivity:
        """What `plain` gave, after a way through JSON."""
        found = cls(list(plain["timesteps"]), [], dict(plain["skipped"]))
        for told in plain["layers"]:
            layer = LayerSensitivity(**told)
            layer.stored_bytes = {int(bits): size for bits, size in layer.stored_bytes.items()}
            layer.errors = {
                kind: {int(bits): errors for bits, errors in widths.items()}
                for kind, widths in layer.errors.items()
            }
            found.layers.append(layer)
        return found


@torch.no_grad()
def measure_sensitivity(
    target: Any,
    spec: Spec,
    calls: Sequence[Call],
    weights: Sequence[int],
    activations: Sequence[int] = (),
    watch: Callable[[Sequence[Any]], Any] = iter,
) -> Sensitivity:
    """Quantize one layer at a time, and see how far the UNet's output moves.

    Weights alone, activations alone, and both at widths that are in both lists.

    Args:
        target: a diffusers pipeline, or a UNet.
        spec: granularities, ranges, rounding, what is included. Its bits, `layers`, `attention`
            and groups of timesteps are passed over: scales are for all timesteps.
        calls: of the UNet, from trajectories of the model itself: calibration and measure.
        weights, activations: bits to try.
        watch: iterates over the layers, for a progress bar.

    Raises:
        ValueError: no calls, bits or layers; see `quantized`.
    """
    calls = [call for call in calls if call.path == "unet"]
    if not calls:
        raise ValueError("sensitivity: no calls of the UNet to measure on")
    if not weights and not activations:
        raise ValueError("sensitivity: no bits to try, neither of weights nor of activations")
    spec = replace(
        spec, parts=("unet",), first_last="same", layers={}, attention=None, time_groups=1
    )
    plans = dict(_plans(target, spec, calls, weights, activations))
    unet = parts_of(target, ("unet",))["unet"]
    batch = len(calls[0].args[0] if calls[0].args else calls[0].kwargs["sample"])
    cost = count(unet, *calls[0].args, **calls[0].kwargs)
    expected = [_output(target, call) for call in calls]
    times = timesteps(calls)
    paths = dict.fromkeys(path for plan in plans.values() for path in plan.twins)
    layers = []
    for path in watch(list(paths)):
        name = path.removeprefix("unet.")
        layer = unet.get_submodule(name)
        macs = cost.modules[name].macs_conv_linear // batch if name in cost.modules else 0
        plain = sum(p.nbytes for p in layer.parameters(recurse=False))
        row = LayerSensitivity(path, type(layer).__name__, layer.weight.numel(), macs, plain)
        for kind, bits, twin in _twins(plans, path, layer):
            if kind == "weights":
                row.stored_bytes[bits] = twin.stored_bytes
            with ExitStack() as stack:
                swap(stack, target, Plan(twins={path: (layer, twin)}))
                found = _errors(target, calls, expected)
            row.errors.setdefault(kind, {})[bits] = found
        layers.append(row)
    return Sensitivity(times, layers, next(iter(plans.values())).skipped)


@torch.no_grad()
def measure_error(
    target: Any, calls: Sequence[Call], quantize: Callable[[], AbstractContextManager[Any]]
) -> list[float]:
    """‖ŷ − y‖² / ‖y‖² of the UNet's output, a timestep each, while `quantize()` is entered."""
    expected = [_output(target, call) for call in calls]
    with quantize():
        return _errors(target, calls, expected)


def timesteps(calls: Sequence[Call]) -> list[float]:
    """Those that the calls are of, noise first."""
    return sorted({call.time or 0.0 for call in calls}, reverse=True)


def _errors(target: Any, calls: Sequence[Call], expected: Sequence[torch.Tensor]) -> list[float]:
    sums = {time: [0.0, 0.0] for time in timesteps(calls)}
    for call, truth in zip(calls, expected, strict=True):
        error, size = sums[call.time or 0.0]
        error += float((_output(target, call) - truth).square().sum())
        sums[call.time or 0.0] = [error, size + float(truth.square().sum())]
    return [error / size for error, size in sums.values()]


def _plans(
    target: Any,
    spec: Spec,
    calls: Sequence[Call],
    weights: Sequence[int],
    activations: Sequence[int],
) -> Iterator[tuple[tuple[str, int], Plan]]:
    """(kind, bits) → everything quantized that way."""
    for kind, widths in (("weights", weights), ("activations", activations)):
        for bits in widths:
            chosen = {name: replace(getattr(spec, name), bits=None) for name in KINDS[:2]}
            chosen[kind] = replace(chosen[kind], bits=bits)
            yield (kind, bits), make_plan(target, replace(spec, **chosen), calls)


def _twins(
    plans: Mapping[tuple[str, int], Plan], path: str, layer: Any
) -> Iterator[tuple[str, int, Any]]:
    """(kind, bits, twin) of one layer; it is missing where calibration did not reach it."""
    stored = {
        bits: plan.twins[path][1].stored
        for (kind, bits), plan in plans.items()
        if kind == "weights" and path in plan.twins
    }
    inputs = {
        bits: plan.twins[path][1].inputs
        for (kind, bits), plan in plans.items()
        if kind == "activations" and path in plan.twins
    }
    for bits, weight in stored.items():
        yield "weights", bits, twin_of(layer, weight)
    for bits, quantizer in inputs.items():
        yield "activations", bits, twin_of(layer, None, quantizer)
    for bits in stored.keys() & inputs.keys():
        yield "both", bits, twin_of(layer, stored[bits], inputs[bits])


def _output(target: Any, call: Call) -> torch.Tensor:
    out = network(target, call.path)(*call.args, **call.kwargs)
    return (out[0] if isinstance(out, tuple) else out.sample).float()
