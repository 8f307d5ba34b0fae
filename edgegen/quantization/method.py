"""Quantizing a pipeline: for a while, or for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..cost import cost_mode
from ..sampling.steps import StepClock, step_clock
from .attention import processor_of, set_processor
from .calls import Call
from .choice import parts_of
from .modules import Quantized
from .plan import Plan, make_plan
from .presets import parse_spec
from .quantizers import Period
from .report import Report, report_of
from .saving import note_quantization
from .spec import PARTS

_STEPS = "_edgegen_quantized_steps"  # what keeps a pipeline's scheduler telling the timesteps


@contextmanager
def quantized(
    target: Any,
    spec: Any = None,
    *,
    calls: Iterable[Call] | None = None,
    **settings: Any,
) -> Iterator[Report]:
    """Compute with quantized weights, activations and attention while this is open.

        with quantized(pipe, "w4a8", activations={"granularity": "token"}) as report:
            pipe("a fox")
        print(report.table())

    A simulation: products are computed in floating point on values that lie on integer grids. The
    parameters and the names in the `state_dict` stay as they are; on exit everything does.

    Args:
        target: a diffusers pipeline, or a UNet.
        spec: the name of a file of `configs/method` (`w8a8`, `w4a8`, `w4a16`, `w4a4`, `vq1d`,
            `vq2d`, `vq4d`), a YAML file, a mapping or a `Spec`; by default `Spec()`.
        calls: for calibration, from `record_calls`. By default the pipeline makes its own, with the
            spec's prompts, where static scales, GPTQ or bias correction ask for them.
        settings: fields of `Spec` that differ from `spec`; nested ones as mappings.

    Yields what was quantized and what was not. With `time_groups`, its `steps` is the clock that
    tells the timestep: the scheduler drives it, and without one the caller does.

    Raises:
        ValueError, FileNotFoundError: a spec that is not valid or fits nothing, a model that is
            quantized already, calibration that cannot be had or meets values that are not finite.
    """
    plan = make_plan(target, parse_spec(spec, **settings), calls)
    with ExitStack() as stack:
        swap(stack, target, plan)
        steps = None
        if plan.period is not None:
            scheduler = getattr(target, "scheduler", None)
            steps = stack.enter_context(step_clock(scheduler)) if scheduler else StepClock()
            stack.callback(plan.period.follow(steps))
        report = report_of(plan, steps)
        for part in parts_of(target, tuple(_parts(plan))).values():
            # Another mode for each: a tracker must not take its cost for that of plain weights.
            stack.enter_context(cost_mode(part, lambda: id(report)))
        yield report


def quantize_(
    target: Any,
    spec: Any = None,
    *,
    calls: Iterable[Call] | None = None,
    **settings: Any,
) -> Report:
    """Quantize for good: the weights in full precision are given up.

    Afterwards `pipe.save_pretrained` writes packed integers, which `load_quantized` reads. With
    `time_groups` the scheduler must not be exchanged afterwards.

    Args, raises: as `quantized`. Returns what was quantized and what was not.
    """
    spec = parse_spec(spec, **settings)
    plan = make_plan(target, spec, calls)
    with ExitStack() as stack:
        swap(stack, target, plan)
        stack.pop_all()  # nothing is put back
    report = report_of(plan, None)
    for _, twin in plan.twins.values():
        twin.persist()
    for _, processor in plan.processors.values():
        processor.persist()
    for part in parts_of(target, tuple(_parts(plan))).values():
        note_quantization(part, spec)
    report.steps = attach_steps(target)
    return report


def attach_steps(target: Any) -> StepClock | None:
    """Let a pipeline's scheduler tell the timestep to its quantizers for good, if they ask for it.

    For pipelines whose parts were loaded quantized by groups of timesteps. Returns the clock, which
    without a scheduler the caller drives.
    """
    periods = {
        each
        for name in PARTS
        if isinstance(part := getattr(target, name, target if name == "unet" else None), nn.Module)
        for each in part.modules()
        if isinstance(each, Period)
    }
    if not periods:
        return None
    if _STEPS in target.__dict__:
        target.__dict__.pop(_STEPS).close()
    stack = ExitStack()
    scheduler = getattr(target, "scheduler", None)
    steps = stack.enter_context(step_clock(scheduler)) if scheduler else StepClock()
    for period in periods:
        stack.callback(period.follow(steps))
    target.__dict__[_STEPS] = stack  # a clock that nobody holds is released
    return steps


def _parts(plan: Plan) -> list[str]:
    return sorted({path.partition(".")[0] for path in (*plan.twins, *plan.processors)})


def swap(stack: ExitStack, target: Any, plan: Plan) -> None:
    """Put everything in its place until the stack closes."""
    twins = {id(layer): twin for layer, twin in plan.twins.values()}
    for part in parts_of(target, tuple(_parts(plan))).values():
        for module in list(part.modules()):
            for name, child in module._modules.items():
                if child is not None and (twin := twins.get(id(child))) is not None:
                    module._modules[name] = twin
                    stack.callback(_put_back, module, name, child, twin)
    for attention, processor in plan.processors.values():
        stack.callback(set_processor, attention, processor_of(attention))
        set_processor(attention, processor)
        # Read by the cost counter.
        attention.attention_bits = processor.bits
        stack.callback(attention.__dict__.pop, "attention_bits", None)


def _put_back(module: nn.Module, name: str, layer: nn.Module, twin: Quantized) -> None:
    module._modules[name] = layer
    layer.training = twin.training
    # `.to` may have made new ones.
    layer._parameters.update({key: twin._parameters[key] for key in layer._parameters})
