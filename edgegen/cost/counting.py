"""Counting one call of a module, operator by operator.

The rule that tells attention from linear: **a matrix product is attention when neither operand is
a weight.** A weight is a parameter or buffer, a view of one, or what was computed from weights
alone (a dequantized matrix, Φ0 + A·B). It holds for eager attention (`bmm`, `baddbmm`), for fused
kernels and for quantized twins alike, wherever in the model they sit. Its one limit: attention
whose queries or keys depend on no input at all (learned queries, before any input is mixed in)
counts as linear when it is eager.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)

from . import formulas
from .bits import declared_attention_bits, declared_bits, has_bits, weights
from .formulas import Kind
from .tally import Cost, ModuleCost


def count(module: nn.Module, *args: Any, **kwargs: Any) -> Cost:
    """Run `module(*args, **kwargs)` once, without gradients, and count it.

    Works on CPU, CUDA, meta and fake tensors. Counts what is executed: quantized or skipped parts
    at what they do, not at what they stand for.

    Raises:
        ValueError: the module is a `torch.compile` wrapper or compiled in place: a compiled graph
            hides its operators. Pass the original module.
    """
    if is_compiled(module):
        raise ValueError(
            f"cannot count a compiled {type(module).__name__}: pass the module from before "
            "torch.compile, or use CostTracker"
        )
    with torch.no_grad(), Counter(module) as counter:
        module(*args, **kwargs)
    return counter.cost


def is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class _Operators(TorchDispatchMode):
    """Hands every operator that moves data, after it ran, to `record`."""

    def __init__(self, record: Callable[..., None]) -> None:
        super().__init__()
        self._record = record
        self._kinds: dict[Any, Kind] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = formulas.kind(func)
        if kind is Kind.COMPOSITE:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if kind is not Kind.NO_DATA:
            self._record(func, kind, args, kwargs, out)
        return out


class Counter:
    """Counts the operators run by `root` while it is entered.

    Enter it around one call of `root`. Not re-entrant; other threads are not seen.

    Args:
        root: names of modules in the cost are relative to it. Modules that run inside it without
            being part of it (an adaptor that a method calls) get the name of the module that
            calls them, plus their class name.
        prefix: put before every name.
    """

    def __init__(self, root: nn.Module, prefix: str = "") -> None:
        self._names = {
            id(module): ".".join(part for part in (prefix, name) if part)
            for name, module in root.named_modules()
        }
        self._running: list[tuple[str, nn.Module]] = [(prefix, root)]
        tensors, params, stored = weights(root)
        self._weights = {_storage(t) for t in tensors}
        self._derived: set[int] = set()  # those of them that were computed during the call
        self._operators = _Operators(self._record)
        self._attention = nn.functional.scaled_dot_product_attention
        self._linear = nn.functional.linear
        self._thread = threading.get_ident()
        self._attending = False  # inside a fused attention, which is counted as a whole
        self._layers_with_bits = 0  # running now; their simulated traffic is not counted
        self._handles: list[Any] = []
        self._row = ModuleCost()
        self.cost = Cost(params=params, stored_bytes=stored)

    def __enter__(self) -> Counter:
        self._row = self._row_of(self._running[-1][0])
        # Not `with_kwargs`: torch 2.13 forgets to take that mark back when a hook is removed.
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._attention = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = self._attend
        self._linear = nn.functional.linear
        nn.functional.linear = self._multiply
        self._operators.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._operators.__exit__(*exc)
        nn.functional.scaled_dot_product_attention = self._attention
        nn.functional.linear = self._linear
        self.cost.modules = {
            name: row for name, row in self.cost.modules.items() if row != ModuleCost()
        }
        self._weights = self._derived = set()

    def _row_of(self, name: str) -> ModuleCost:
        return self.cost.modules.setdefault(name, ModuleCost())

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            name = f"{self._running[-1][0]}.{type(module).__name__}".lstrip(".")
        self._running.append((name, module))
        self._row = self._row_of(name)
        if has_bits(module):
            self._layers_with_bits += 1

    def _leave_module(self, module: nn.Module, args: Any, out: Any) -> None:
        if all(running is not module for _, running in self._running[:0:-1]):
            return
        while True:  # what an exception left open above it goes too
            name, left = self._running.pop()
            if has_bits(left):
                self._layers_with_bits -= 1
                if left is module and self._layers_with_bits == 0:
                    self._row_of(name).bytes += _deployed_bytes(left, args, out)
            if left is module:
                break
        self._row = self._row_of(self._running[-1][0])

    def _attend(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """torch's fused attention as one operator.

        Below it, each device and dtype has its own way: one kernel, or (as on meta) a dozen
        operators that no device with such a kernel runs. Who calls it by another name than
        `torch.nn.functional.scaled_dot_product_attention` has the same MACs, but those bytes.
        """
        if threading.get_ident() != self._thread:
            return self._attention(query, key, value, *args, **kwargs)
        self._attending = True
        try:
            out = self._attention(query, key, value, *args, **kwargs)
            if out.device.type == "meta" and out.dim() == 4:
                # As the kernels lay it out: tokens before heads, so that joining heads is no copy.
                out = out.transpose(1, 2).contiguous().transpose(1, 2)
        finally:
            self._attending = False
        self._add_bytes(_tensors([query, key, value, args, kwargs, out]))
        macs = formulas.attention_macs(query.shape, key.shape, value.shape)
        self._add_attention(macs, _bits(query), _bits(key))
        return out

    def _multiply(self, input: Any, weight: Any, bias: Any = None) -> Any:
        """A linear layer as one operator, run as it runs uncounted.

        Where any dispatch mode is on, torch multiplies inputs that are not contiguous by another
        kernel, whose last bits differ.
        """
        top = _get_current_dispatch_mode()
        if threading.get_ident() != self._thread or top is not self._operators:
            return self._linear(input, weight, bias)
        with _pop_mode_temporarily():
            out = self._linear(input, weight, bias)
        args = (input, weight) if bias is None else (input, weight, bias)
        self._record(torch.ops.aten.linear.default, Kind.MATMUL, args, {}, out)
        return out

    def _record(self, func: Any, kind: Kind, args: Any, kwargs: Any, out: Any) -> None:
        if kind is Kind.NEW or self._attending:
            self._forget(_tensors(out))
            return
        inputs = _tensors((args, kwargs) if kwargs else args)
        outputs = [out] if isinstance(out, torch.Tensor) else _tensors(out)
        if kind is Kind.ROWS:
            inputs = [min(inputs[0], outputs[0], key=lambda t: t.nbytes), *inputs[1:]]
        self._add_bytes(inputs)
        self._add_bytes(outputs)
        if inputs and all(_storage(t) in self._weights for t in inputs):
            made = {_storage(t) for t in outputs} - self._weights
            self._weights |= made
            self._derived |= made
        else:
            self._forget(outputs)
        if kind is Kind.FREE or kind is Kind.ROWS:
            return
        if kind is Kind.UNKNOWN or kind is Kind.COMPOSITE:
            self.cost.uncounted[formulas.op_name(func)] += 1
            return
        self._record_macs(func, kind, args, kwargs, out)

    def _forget(self, outputs: list[torch.Tensor]) -> None:
        # A derived weight may have been freed, and its address come back as an activation's.
        if self._derived:
            activations = self._derived.intersection(map(_storage, outputs))
            self._derived -= activations
            self._weights -= activations

    def _record_macs(self, func: Any, kind: Kind, args: Any, kwargs: Any, out: Any) -> None:
        macs = formulas.macs(func, args, kwargs, out)
        operands = formulas.operands(func, args) or _tensors(out)
        bits = (_bits(operands[0]), _bits(operands[-1]))
        if kind is Kind.ATTENTION or (kind is Kind.MATMUL and not self._has_weight(operands)):
            self._add_attention(macs, *bits)
            return
        if kind is Kind.CONV:
            self._row.conv += macs
        else:
            self._row.linear += macs
        bits = declared_bits(self._running) or bits
        self._row.bops += macs * bits[0] * bits[1]

    def _add_attention(self, macs: int, *bits: float) -> None:
        declared = declared_attention_bits(self._running)
        bits = (declared, declared) if declared else bits
        self._row.attention += macs
        self._row.bops += macs * bits[0] * bits[1]

    def _add_bytes(self, tensors: list[torch.Tensor]) -> None:
        if not self._layers_with_bits:
            self._row.bytes += sum([t.nbytes for t in tensors])

    def _has_weight(self, operands: list[torch.Tensor]) -> bool:
        found = {_storage(t) for t in operands}
        if not self._weights.isdisjoint(found):
            return True
        # Offloading may have put other tensors in the place of the parameters seen at the start,
        # and packed tensor subclasses hide their storage.
        layer = self._running[-1][1]
        own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        return not found.isdisjoint(map(_storage, own)) or isinstance(layer, nn.Linear)


def _bits(tensor: torch.Tensor) -> float:
    return 8.0 * tensor.element_size()


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for item in tree.values() if isinstance(tree, dict) else (tree,):
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, (tuple, list)):
            for element in item:
                if isinstance(element, torch.Tensor):
                    found.append(element)
                elif isinstance(element, (tuple, list, dict)):
                    found += _tensors(element)
        elif isinstance(item, dict):
            found += _tensors(item)
    return found


def _storage(tensor: torch.Tensor) -> int:
    # The storage's own address: views share it, and meta and fake tensors have one too.
    return tensor.untyped_storage()._cdata


def _deployed_bytes(layer: Any, inputs: Any, out: Any) -> int:
    """Traffic of a layer with bits of its own: its stored weights, its input, its output."""
    read = sum(t.numel() for t in _tensors(inputs)) * float(layer.act_bits) / 8
    return int(layer.stored_bytes + read + sum(t.nbytes for t in _tensors(out)))
