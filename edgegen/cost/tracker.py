"""Counting a pipeline as it runs."""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .bits import weights
from .counting import Counter
from .kept import kept
from .modes import current_mode, uncompiled
from .summary import DENOISERS, Part, Summary
from .tally import Cost


@dataclass(frozen=True)
class Call:
    """One call of a network, in the order in which they happened.

    Attributes:
        part: `unet`, `text_encoder`, `vae.decoder`, …
        step: the denoising step, for the denoiser's calls.
        batch: size of the first dimension of its first tensor.
        key: what its cost is filed under: submodule, signature and mode.
    """

    part: str
    step: Hashable
    batch: int
    key: Hashable


class CostTracker:
    """Counts what a pipeline's networks do while it is entered.

        with edgegen.CostTracker(pipe) as cost:
            pipe("a fox", num_inference_steps=8)
        print(cost.table())

    The first call of each network with a signature (shapes, dtypes, options, `cost_mode`) is
    counted as it happens, operator by operator; further ones only extend a list. So does the first
    of a network that an earlier tracker counted, if nothing was changed or hooked in it. A network
    compiled by `torch.compile` runs that first call uncompiled: the compiled graph stays valid,
    and the result may differ in the last digits. A call within a watched call belongs to the
    outer one. Nothing is left on the networks afterwards, whatever happened. Gradients and
    backward passes are not counted.

    Args:
        target: a diffusers pipeline (anything with a dict `components`), a dict name → module, or
            one module. An autoencoder is watched at its encoder and decoder.
        step: tells the denoising step of a call. By default every call of the denoiser is a step
            of its own, which is not so for second-order schedulers and calls by chunk.

    Raises:
        ValueError: nothing to count in the target, or one of its modules holds another.
        RuntimeError: entered while it is entered.
    """

    def __init__(self, target: Any, step: Callable[[], Hashable] | None = None) -> None:
        self._watched = [
            watched for item in components_of(target).items() for watched in parts_of(*item)
        ]
        _refuse_nested(self._watched)
        self._step = step
        self._costs: dict[Hashable, Cost] = {}
        self._weights: dict[str, tuple[int, int]] = {}
        self._depth = 0  # watched calls that are running now
        self._call: Call | None = None  # the outermost of them
        self._counter: Counter | None = None  # its counter, if it is the first of its kind
        self._kept: dict[Hashable, Cost] | None = None  # where to keep what it counts
        self._counting = ExitStack()
        self._stack: ExitStack | None = None
        self._denoiser_calls = 0
        self.calls: list[Call] = []

    def __enter__(self) -> CostTracker:
        if self._stack is not None:
            raise RuntimeError("this CostTracker is entered already: use one for each `with`")
        with ExitStack() as stack:
            stack.callback(self._finish, failed=True)  # a call cut short, as by Ctrl-C
            for part, path, module in self._watched:
                self._weights[f"{part} {path}"] = weights(uncompiled(module))[1:]
                self._watch(stack, part, path, module)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _watch(self, stack: ExitStack, part: str, path: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._depth += 1
            if self._depth == 1:
                self._begin(part, path, uncompiled(module), args, kwargs)

        def after(_: nn.Module, args: Any, out: Any) -> None:
            self._depth = max(self._depth - 1, 0)
            if self._depth == 0:
                self._finish(failed=out is None)

        compiled = module._compiled_call_impl
        if compiled is None:
            first = module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
            last = module.register_forward_hook(after, always_call=True)
            stack.callback(first.remove)
            stack.callback(last.remove)
            return

        # Compiled in place (`module.compile()`): hooks would be compiled too.
        def call(*args: Any, **kwargs: Any) -> Any:
            before(module, args, kwargs)
            out = None
            try:
                out = (compiled if self._counter is None else module._call_impl)(*args, **kwargs)
                return out
            finally:
                after(module, args, out)

        module._compiled_call_impl = call
        stack.callback(setattr, module, "_compiled_call_impl", compiled)

    def _begin(self, part: str, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        denoises = part in DENOISERS
        if denoises and len(args) > 1 and isinstance(args[1], int | float):
            args = (args[0], *args[2:])  # a timestep as a number: another one every step
        tensor = first_tensor((args, kwargs))
        key = (part, path, _signature((args, kwargs), ""), _autocast(tensor), current_mode(module))
        step: Hashable = None
        if denoises:
            step = self._step() if self._step else self._denoiser_calls
            self._denoiser_calls += 1
        batch = tensor.shape[0] if tensor is not None and tensor.dim() else 1
        self._call = Call(part, step, batch, key)
        if key not in self._costs:
            self._kept = kept(module)
            if self._kept is not None and key in self._kept:
                self._costs[key] = self._kept[key]
                return
            self._counter = Counter(module, prefix=path)
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                self._counting.enter_context(torch.compiler.set_stance("force_eager"))
            self._counting.enter_context(self._counter)

    def _finish(self, failed: bool = False) -> None:
        """The outermost watched call has ended, `failed` if by an exception."""
        self._depth = 0
        call, self._call = self._call, None
        counter, self._counter = self._counter, None
        self._counting.close()
        if call is None or failed:
            return
        self.calls.append(call)
        if counter is not None:
            self._costs[call.key] = counter.cost
            if self._kept is not None:
                self._kept[call.key] = counter.cost

    def steps(self) -> list[Cost]:
        """Cost of the denoiser in each denoising step, in order."""
        found: dict[Hashable, Cost] = {}
        for call in self.calls:
            if call.part in DENOISERS:
                found[call.step] = found.get(call.step, Cost()) + self._costs[call.key]
        return list(found.values())

    def summary(self, images: int = 1) -> Summary:
        """Cost by part over everything that ran so far, which made `images` pictures."""
        return Summary(
            {part: self._part(part) for part in dict.fromkeys(call.part for call in self.calls)},
            images,
        )

    def _part(self, part: str) -> Part:
        calls = [call for call in self.calls if call.part == part]
        times = Tally(call.key for call in calls)
        paths: dict[str, list[Any]] = {}
        for key in times:
            paths.setdefault(key[1], []).append(key)  # type: ignore[index]
        total, largest = Cost(), Cost()
        for keys in paths.values():
            # An autoencoder's half is two modules: a call of the part is a call of each.
            total += sum((self._costs[key] * times[key] for key in keys), Cost())
            largest += max((self._costs[key] for key in keys), key=lambda cost: cost.macs_all)
        for cost in (total, largest):
            own = [w for name, w in self._weights.items() if name.startswith(f"{part} ")]
            cost.params, cost.stored_bytes = (sum(numbers) for numbers in zip(*own, strict=True))
        batch = max(call.batch for call in calls)
        count = max(sum(times[key] for key in keys) for keys in paths.values())
        return Part(total, count, largest, batch)

    @property
    def total_macs(self) -> int:
        """MACs of everything that ran, attention products included."""
        return self.summary().total.macs_all

    @property
    def uncounted(self) -> Tally[str]:
        """Operators that the totals leave out for want of a formula → how often they ran."""
        return self.summary().uncounted

    def metrics(self, images: int = 1) -> dict[str, float]:
        """Flat numbers for `metrics.json`; see `Summary.metrics`."""
        return self.summary(images).metrics()

    def table(self) -> str:
        """Cost by part as text; see `Summary.table`."""
        return self.summary().table()


def components_of(target: Any) -> dict[str, nn.Module]:
    if isinstance(target, nn.Module):
        module = uncompiled(target)
        name = "unet" if hasattr(module, "up_blocks") and hasattr(module, "conv_in") else "model"
        return {name: target}
    items = target if isinstance(target, Mapping) else getattr(target, "components", None)
    if not isinstance(items, Mapping):
        raise ValueError(
            f"cannot count an object of type {type(target).__name__}: "
            "give a pipeline, a module or a dict of modules"
        )
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in items.items():
        if isinstance(module, nn.Module):
            found.setdefault(id(uncompiled(module)), (name, module))
    if not found:
        raise ValueError(f"nothing to count: this {type(target).__name__} holds no network")
    return dict(found.values())


def parts_of(name: str, module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, path below the component, module) of what to watch in a component."""
    inner = uncompiled(module)
    if not (hasattr(inner, "encode") and hasattr(inner, "decode")):
        yield name, "", module
        return
    # Pipelines call `encode` and `decode`, which hooks do not see.
    for path, child in inner.named_children():
        half = "decoder" if path in ("decoder", "post_quant_conv") else "encoder"
        yield f"{name}.{half}", path, child


def _refuse_nested(watched: list[tuple[str, str, nn.Module]]) -> None:
    tops = {id(uncompiled(module)): part for part, _, module in watched}
    for part, _, module in watched:
        for inner in list(uncompiled(module).modules())[1:]:
            if id(inner) in tops:
                raise ValueError(f"{part} holds {tops[id(inner)]}: give one of them to count")


def first_tensor(tree: Any) -> torch.Tensor | None:
    if isinstance(tree, torch.Tensor):
        return tree
    items = tree.values() if isinstance(tree, Mapping) else tree
    if isinstance(tree, tuple | list | Mapping):
        return next((t for t in map(first_tensor, items) if t is not None), None)
    return None


def _signature(value: Any, name: str) -> Hashable:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple | list):
        return tuple(_signature(item, "") for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _signature(item, key)) for key, item in value.items())
    if isinstance(value, bool | str | int | float | None) and name != "timestep":
        return value
    return type(value).__name__


def _autocast(tensor: torch.Tensor | None) -> Hashable:
    device = "cpu" if tensor is None else tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
