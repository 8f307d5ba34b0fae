"""Execution on 8-bit integers, rather than simulation: PT2E with inductor's kernels for CPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from ..cost import cost_mode
from ..cost.modes import current_mode
from ..sampling.steps import bound
from .calibration import about_calls, draw_calls
from .calls import Call
from .choice import parts_of
from .modules import Quantized
from .spec import CalibrationSpec, changed

ENGINES = ("inductor", "simulated")
PRECISIONS = ("float32", "bfloat16")
_INPUTS = ("sample", "timestep", "encoder_hidden_states")
_BITS = {"weight_bits": 8.0, "act_bits": 8.0}

# UNet → (its weights, all else) → what is executed in its place.
_MADE: WeakKeyDictionary[nn.Module, dict[tuple[str, str], Executor]] = WeakKeyDictionary()

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What a UNet takes: samples (B, C, H, W), timesteps (B,), text features (B, S, D)."""


@contextmanager
def executed(
    target: Any,
    engine: str = "inductor",
    *,
    batch: int = 2,
    precision: str = "float32",
    calibration: Any = None,
    calls: Iterable[Call] | None = None,
) -> Iterator[Executor]:
    """Run a UNet's linear layers and convolutions on 8-bit integers while this is open.

        with executed(pipe, batch=8):
            pipe(["a fox"] * 4)

    Weights by output channel, inputs by whole tensors, as `X86InductorQuantizer` of torchao has it.
    The first call compiles, which takes minutes; entered again with the same pipeline, weights and
    settings, it goes on with what it compiled. One graph is made, of `batch` samples: calls with
    more are cut up, those with fewer filled up.

    Args:
        target: a diffusers pipeline, or a UNet.
        engine: `inductor` compiles to int8 kernels of the CPU; `simulated` computes the same graph
            in floating point.
        batch: samples of one execution; with guidance a picture has two.
        precision: of all between the integer layers: `float32`, or `bfloat16`, which is quicker.
        calibration: fields of `CalibrationSpec`: the runs that ranges are found in.
        calls: of the UNet, instead of those.

    Raises:
        ValueError: torchao is not installed, an unknown engine, no calls, or a UNet that takes more
            than samples, timesteps and text features.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine}: allowed are {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: allowed are {', '.join(PRECISIONS)}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch}: must be a whole number, 1 or more")
    settings = changed("calibration", CalibrationSpec(), calibration or {})
    settings.check("calibration")
    unet = parts_of(target, ("unet",))["unet"]
    for name, module in unet.named_modules():
        if isinstance(module, Quantized):
            raise ValueError(f"unet.{name} is quantized already")
    if unet.device.type != "cpu":
        raise ValueError(f"engine={engine}: runs on the CPU, and the UNet is on {unet.device}")
    executor = _executor(unet, target, (engine, batch, precision), settings, calls)
    forward, own = unet.forward, unet.__dict__.get("forward")

    def run(*args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        inputs = _inputs(args, kwargs)
        if _get_current_dispatch_mode() is None:
            out = executor(*inputs)
        else:  # somebody counts operators, which a compiled graph hides
            forward(*args, return_dict=False, **kwargs)
            with _disable_current_modes():
                out = executor(*inputs)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)

    with ExitStack() as stack:
        stack.enter_context(cost_mode(unet, lambda: id(executor)))
        stack.enter_context(
            bound(unet, "executed: runs a graph of its own, past all layers", layers=True)
        )
        for layer in unet.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _tell_bits(stack, layer)
        unet.forward = run
        stack.callback(_put_back, unet, own)
        yield executor


def _executor(
    unet: Any,
    target: Any,
    how: tuple[str, int, str],
    settings: CalibrationSpec,
    calls: Iterable[Call] | None,
) -> Executor:
    engine, batch, precision = how
    options = engine == "inductor", precision == "bfloat16"
    if calls is not None:
        return Executor(int8_graph(unet, inputs_of(calls, batch)), batch, *options)
    parts = ("unet",)
    about = about_calls(target, parts, settings)
    made = _MADE.setdefault(unet, {})
    for other in [each for each in made if each[0] != about["pipeline"]]:
        del made[other]  # of other weights
    key = about["pipeline"], json.dumps([how, about, _acts_as(unet)], sort_keys=True, default=str)
    if key not in made:
        calls = draw_calls(target, parts, settings)
        made[key] = Executor(int8_graph(unet, inputs_of(calls, batch)), batch, *options)
    return made[key]


def _acts_as(unet: Any) -> list[Any]:
    """What the weights do not tell of a network: methods on it, processors, adapters."""
    processors = [
        [name, type(module.processor).__name__]
        for name, module in unet.named_modules()
        if hasattr(module, "processor")
    ]
    adapters = [
        [name, module.active_adapters, module.disable_adapters, module.scaling]
        for name, module in unet.named_modules()
        if hasattr(module, "active_adapters") and hasattr(module, "scaling")
    ]
    return [repr(current_mode(unet)), repr(vars(unet).get("forward")), processors, adapters]


class Executor:
    """A graph for so many samples, called with any number of them.

    Args:
        graph: takes `Inputs` of `batch` samples and `return_dict=False`.
        compiled: whether inductor compiles it, at the first call.
        bf16: whether all between the integer layers is computed in bfloat16.
    """

    def __init__(self, graph: nn.Module, batch: int, compiled: bool, bf16: bool = False) -> None:
        self.batch = batch
        self.bf16 = bf16
        self.graph = graph
        self._run: Callable[..., Any] = graph
        if compiled:
            self._run = frozen(graph)

    @torch.no_grad()
    def __call__(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's output, in the shape and dtype of `sample`."""
        inputs = _plain(sample, timestep, encoder_hidden_states)
        parts = []
        for start in range(0, len(sample), self.batch):
            chunk = tuple(each[start : start + self.batch] for each in inputs)
            filled = tuple(_filled(each, self.batch) for each in chunk)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                out = self._run(*filled, return_dict=False)[0]
            parts.append(out[: len(chunk[0])])
        return torch.cat(parts).to(sample.dtype)


def frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for one shape, its weights constants that are laid out for the kernels.

    `freezing` must be set while it is called: as an option of `torch.compile` it comes too late for
    weights to be seen as constants, and int8 kernels are then refused. For each matrix product the
    quicker of oneDNN's kernel and inductor's own template is taken: oneDNN's for integers is the
    slower one on the small matrices of a UNet.
    """
    from torch._inductor import config as inductor_config  # takes a second to import

    compiled = torch.compile(function, dynamic=False)
    options = {
        "freezing": True,
        "max_autotune_gemm": True,
        "max_autotune_gemm_backends": "CPP,ATEN",
        "max_autotune_report_choices_stats": False,
        "autotune_num_choices_displayed": 0,
    }

    def run(*args: Any, **kwargs: Any) -> Any:
        with inductor_config.patch(options):
            return compiled(*args, **kwargs)

    return run


def int8_graph(unet: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """A UNet's graph with calibrated 8-bit quantizers around linear layers and convolutions.

    Args:
        unet: on the CPU.
        batches: all of one size, which becomes the graph's: what ranges are found in.

    Raises:
        ValueError: torchao is not installed, or nothing to calibrate with.
    """
    pt2e, x86 = _pt2e()
    if not batches:
        raise ValueError("calls: holds no call of the UNet")
    with torch.no_grad():
        program = torch.export.export(unet, batches[0], {"return_dict": False}, strict=False)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = pt2e.prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(*batch, return_dict=False)
        graph = pt2e.convert_pt2e(prepared)
    for node in list(graph.graph.nodes):  # export notes the dtypes of then, which autocast changes
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def inputs_of(calls: Iterable[Call], batch: int) -> list[Inputs]:
    """The samples of calls of the UNet, `batch` at a time; those of the last are filled up."""
    found = [
        _plain(*_inputs(call.args, {k: v for k, v in call.kwargs.items() if k != "return_dict"}))
        for call in calls
        if call.path == "unet"
    ]
    if not found:
        return []
    joined = tuple(torch.cat(each) for each in zip(*found, strict=True))
    return [
        tuple(_filled(each[start : start + batch], batch) for each in joined)  # type: ignore[misc]
        for start in range(0, len(joined[0]), batch)
    ]


def _inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    given = {**dict(zip(_INPUTS, args, strict=False)), **kwargs}
    surplus = [name for name, value in given.items() if name not in _INPUTS and value is not None]
    if surplus or len(args) > len(_INPUTS):
        what = surplus[0] if surplus else f"{len(args)} inputs"
        raise ValueError(f"executed: the graph takes {', '.join(_INPUTS)} alone, not {what}")
    return [given[name] for name in _INPUTS]


def _plain(sample: torch.Tensor, timestep: Any, text: torch.Tensor) -> Inputs:
    times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
    return sample.float(), times.expand(len(sample)).clone(), text.float()


def _filled(rows: torch.Tensor, batch: int) -> torch.Tensor:
    missing = batch - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _put_back(unet: nn.Module, forward: Any) -> None:
    unet.__dict__.pop("forward", None)
    if forward is not None:
        unet.__dict__["forward"] = forward


def _tell_bits(stack: ExitStack, layer: Any) -> None:
    """Let the cost counter know; a float32 scale an output channel, and two for the input."""
    bias = 0 if layer.bias is None else layer.bias.nbytes
    stored = layer.weight.numel() + 4 * len(layer.weight) + 8 + bias
    for name, value in {**_BITS, "stored_bytes": stored}.items():
        setattr(layer, name, value)
        stack.callback(layer.__dict__.pop, name, None)


def _pt2e() -> tuple[Any, Any]:
    try:
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except ImportError as error:
        raise ValueError(missing("engine=inductor")) from error
    return quantize_pt2e, x86_inductor_quantizer


def missing(what: str) -> str:
    """What to say where torchao is not there."""
    return f"{what} needs torchao 0.18 or later: pip install 'edgegen[engines]'"
