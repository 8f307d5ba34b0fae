"""From a spec to what takes the place of what: calibration, ranges, rounding, bias correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from .attention import OPERANDS, QuantizedAttention, processor_of, set_processor
from .calibration import draw_calls, run_calls
from .calls import Call
from .choice import Choice, Layer, choose, parts_of
from .codebooks import CodebookWeight, layout_of
from .gptq import Hessian, round_by_gptq
from .gptvq import quantize_vectors
from .grids import Grid
from .modules import Quantized, twin_of
from .observers import Observer
from .quantizers import DynamicQuantizer, Period, Quantizer, StaticQuantizer
from .spec import ActivationSpec, Spec
from .time_embedding import finite_inputs
from .weights import IntegerWeight, round_to_nearest, weight_scales

UNREACHED = "no calibration call reached it"
HESSIAN_BYTES = 2 << 30  # of Hessians at a time; layers beyond that wait for another round of calls


@dataclass
class Plan:
    """What to put where.

    Attributes:
        twins: path → (layer, its twin).
        processors: path → (attention, its new processor).
        skipped: path → why it is left as it is.
        nearest: paths of layers that are rounded to nearest although the spec says `gptq`: no call
            reached them, or the convolution has groups.
        period: tells the quantizers the timestep; None where none asks.
    """

    twins: dict[str, tuple[Any, Quantized]] = field(default_factory=dict)
    processors: dict[str, tuple[Any, QuantizedAttention]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    nearest: list[str] = field(default_factory=list)
    period: Period | None = None


def make_plan(target: Any, spec: Spec, calls: Iterable[Call] | None = None) -> Plan:
    """Work out everything; the target is not changed.

    Args:
        target: a diffusers pipeline, or a UNet.
        calls: for calibration; by default the pipeline makes its own (`spec.calibration`), where
            anything asks for them.

    Raises:
        ValueError: see `quantized`.
    """
    choice = choose(target, spec)
    with torch.inference_mode(False):
        return _Builder(target, spec, choice).build(calls)


class _Builder:
    def __init__(self, target: Any, spec: Spec, choice: Choice) -> None:
        self.target, self.spec, self.choice = target, spec, choice
        self.plan = Plan(skipped=dict(choice.skipped))
        steps = getattr(getattr(target, "scheduler", None), "config", {})
        self.period = Period(spec.time_groups, steps.get("num_train_timesteps", 1000))
        self.group = 0  # of timesteps, of the call that runs
        self.observers: dict[str, Observer] = {}  # path, of attention with the operand behind it
        self.feeding_back: list[str] = []  # paths of layers to be rounded by GPTQ or GPTVQ
        self.rounded: dict[str, IntegerWeight | CodebookWeight] = {}
        self.calls: list[Call] = []

    def build(self, calls: Iterable[Call] | None) -> Plan:
        for path, layer in self.choice.layers.items():
            self._watch_layer(path, layer)
        for path in self.choice.attention:
            self._watch_attention(path)
        if not self._is_meta():
            self._see_finite()
            self._see_calls(calls)
        for path, layer in self.choice.layers.items():
            self._make_twin(path, layer)
        for path, attention in self.choice.attention.items():
            self._make_processor(path, attention)
        if self.spec.bias_correction and not self._is_meta():
            self._correct_biases()
        return self.plan

    def _watch_layer(self, path: str, layer: Layer) -> None:
        weight = layer.module.weight
        if not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{path} has weights that are not finite")
        activations = layer.activations
        if activations.bits is not None and not activations.is_dynamic:
            axis = 1 if isinstance(layer.module, nn.Conv2d) else -1
            self.observers[path] = Observer(activations, axis, layer.split, self._groups(path))
        feeds_back = layer.weights.bits is not None and layer.weights.rounding == "gptq"
        if feeds_back and getattr(layer.module, "groups", 1) == 1:  # else rounded to nearest
            self.feeding_back.append(path)

    def _watch_attention(self, path: str) -> None:
        if not self.spec.activations.is_dynamic:
            for operand in OPERANDS:
                observer = Observer(self.spec.activations, groups=self._groups(path))
                self.observers[f"{path}.{operand}"] = observer

    def _groups(self, path: str) -> int:
        return self.spec.time_groups if path.startswith("unet.") else 1

    def _is_meta(self) -> bool:
        parts = parts_of(self.target, self.spec.parts).values()
        return any(p.is_meta for part in parts for p in part.parameters())

    def _see_finite(self) -> None:
        """The layers whose inputs are all known."""
        finite = {
            path.removeprefix("unet."): self.observers[path]
            for path, layer in self.choice.layers.items()
            if layer.finite and path in self.observers
        }
        if not finite:
            return
        unet = parts_of(self.target, ("unet",))["unet"]
        times = torch.arange(self.period.timesteps)
        groups = torch.tensor([self.period.group(time) for time in times.tolist()])
        for group in range(self.spec.time_groups):
            for name, x in finite_inputs(unet, set(finite), times[groups == group]):
                finite[name].see(x, group)

    def _see_calls(self, calls: Iterable[Call] | None) -> None:
        """All other ranges, and the Hessians."""
        waiting = [path for path, each in self.observers.items() if not each.reached]
        if not waiting and not self.feeding_back and not self.spec.bias_correction:
            return
        if calls is None:
            calls = draw_calls(self.target, self.spec.parts, self.spec.calibration)
        self.calls = list(calls)
        # What finite layers take is known already; only their Hessians are not.
        observers = {
            path: observer
            for path, observer in self.observers.items()
            if path in self.choice.layers and not self.choice.layers[path].finite
        }
        rounds = list(self._rounds())
        self._run(observers, rounds[0] if rounds else [], self.choice.attention)
        for paths in rounds[1:]:
            self._run({}, paths, {})

    def _rounds(self) -> Iterator[list[str]]:
        """The layers whose Hessians are held at the same time."""
        paths: list[str] = []
        held = 0
        for path in self.feeding_back:
            size = 4 * self.choice.layers[path].module.weight[0].numel() ** 2
            if paths and held + size > HESSIAN_BYTES:
                yield paths
                paths, held = [], 0
            paths.append(path)
            held += size
        if paths:
            yield paths

    def _run(
        self,
        observers: Mapping[str, Observer],
        feeding_back: Sequence[str],
        attention: Mapping[str, Any],
    ) -> None:
        """Make the calls: ranges, and the weights that are rounded with feedback."""
        layers = self.choice.layers
        hessians = {path: Hessian(layers[path].module) for path in feeding_back}
        with ExitStack() as stack:
            seers: list[tuple[str, Observer | Hessian]] = [*observers.items(), *hessians.items()]
            for path, seer in seers:
                hook = layers[path].module.register_forward_pre_hook(self._seen_by(seer))
                stack.callback(hook.remove)
            for path, module in attention.items():
                operands = [self.observers.get(f"{path}.{operand}") for operand in OPERANDS]
                if None not in operands:
                    stack.callback(set_processor, module, processor_of(module))
                    looks = [partial(self._look, observer) for observer in operands]
                    set_processor(module, QuantizedAttention(*looks))
            run_calls(self.target, self.calls, self._begin)
        for path, hessian in hessians.items():
            if hessian.reached:
                self.rounded[path] = self._stored(layers[path], hessian.matrix)

    def _begin(self, call: Call) -> None:
        self.group = 0 if call.time is None else self.period.group(call.time)

    def _seen_by(self, seer: Observer | Hessian) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            if isinstance(seer, Hessian):
                seer.see(args[0])
            else:
                self._look(seer, args[0])

        return hook

    def _look(self, observer: Any, x: torch.Tensor) -> torch.Tensor:
        observer.see(x, self.group if observer.groups > 1 else 0)
        return x

    def _make_twin(self, path: str, layer: Layer) -> None:
        conv = isinstance(layer.module, nn.Conv2d)
        activations = layer.activations
        inputs: Quantizer | None = None
        if activations.bits is not None:
            axes = (1, 2, 3) if conv else (-1,)
            found = self._quantizer(path, activations, activations.bits, axes)
            if found is None:
                self.plan.skipped[path] = UNREACHED
                return
            inputs = found
        stored = self.rounded.get(path)
        if stored is None and layer.weights.bits is not None:
            if layer.weights.rounding == "gptq" and not layer.module.weight.is_meta:
                self.plan.nearest.append(path)
            stored = self._stored(layer)
        self.plan.twins[path] = (layer.module, twin_of(layer.module, stored, inputs))

    def _stored(
        self, layer: Layer, hessian: torch.Tensor | None = None
    ) -> IntegerWeight | CodebookWeight:
        spec, weight = layer.weights, layer.module.weight
        assert spec.bits is not None
        if spec.vector is not None:
            layout = layout_of(weight.shape, spec.bits, spec.vector, spec.codebook_bits, spec.block)
            if weight.is_meta:
                return CodebookWeight.empty(weight.shape, layout, "meta")
            return quantize_vectors(weight, layout, hessian)
        grid = Grid(spec.bits, spec.symmetric)
        group = spec.group if spec.granularity == "group" else None
        scales = weight_scales(
            weight, grid, spec.granularity, group, spec.range, percentile=spec.percentile, p=spec.p
        )
        if hessian is None:
            integers = round_to_nearest(weight, scales, grid, group)
        else:
            integers = round_by_gptq(weight, hessian, scales, grid, group)
        return IntegerWeight(integers, *scales, grid, group)

    def _quantizer(
        self, path: str, spec: ActivationSpec, bits: int, axes: tuple[int, ...]
    ) -> Quantizer | None:
        """None where calibration did not come by."""
        grid = Grid(bits, spec.symmetric)
        if spec.is_dynamic:
            return DynamicQuantizer(grid, axes if spec.granularity == "token" else None)
        observer = self.observers[path]
        if self._is_meta():
            shape = (observer.groups, observer.parts)
            scale, point = torch.ones(shape, device="meta"), None
            point = None if grid.symmetric else torch.zeros(shape, device="meta")
        elif not observer.reached:
            return None
        else:
            try:
                scale, point = observer.scales(grid)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        period = None
        if observer.groups > 1:
            period = self.plan.period = self.period.to(scale.device)
        return StaticQuantizer(grid, scale, point, observer.axis, observer.split, period)

    def _make_processor(self, path: str, attention: Any) -> None:
        spec, bits = self.spec.activations, self.spec.attention
        assert bits is not None
        operands = []
        for operand in OPERANDS:
            # Values are summed over tokens, which cannot have scales of their own then.
            axes = (1, 2, 3) if operand == "value" else (-1,)
            operands.append(self._quantizer(f"{path}.{operand}", spec, bits, axes))
        if None in operands:
            self.plan.skipped[path] = UNREACHED
        else:
            self.plan.processors[path] = (attention, QuantizedAttention(*operands))  # type: ignore[arg-type]

    def _correct_biases(self) -> None:
        """Take each output channel's mean error off its bias (arXiv 1906.04721, section 4.2).

        Measured layer by layer on what the layers take in full precision.
        """
        errors: dict[str, list[torch.Tensor]] = {}
        with ExitStack() as stack:
            for path, (layer, twin) in self.plan.twins.items():
                hook = layer.register_forward_hook(partial(_note_error, errors, path, twin))
                stack.callback(hook.remove)
            run_calls(self.target, self.calls, self._begin_corrected)
        for path, found in errors.items():
            _, twin = self.plan.twins[path]
            twin.correction = -torch.stack(found).mean(0).to(twin.like.dtype)

    def _begin_corrected(self, call: Call) -> None:
        if call.time is not None:
            self.period.at(call.time)


def _note_error(
    errors: dict[str, list[torch.Tensor]],
    path: str,
    twin: Quantized,
    layer: nn.Module,
    args: Any,
    out: torch.Tensor,
) -> None:
    error = (twin.forward(*args) - out).float()
    dims = (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(error.dim() - 1))
    errors.setdefault(path, []).append(error.mean(dims))
