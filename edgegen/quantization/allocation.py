"""Bits for each layer by an integer program (as MixDQ, arXiv 2405.17873, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from .sensitivity import LayerSensitivity, Sensitivity
from .spec import Spec

Bits = tuple[int | None, int | None]  # of weights and of activations


def allocate(
    errors: Sequence[Sequence[float]],
    costs: Mapping[str, Sequence[Sequence[float]]],
    budgets: Mapping[str, float],
) -> list[int]:
    """One option for each layer, with the least sum of errors that the budgets allow.

    Args:
        errors: [layer][option].
        costs: name → [layer][option], such as bytes.
        budgets: name → the most that the chosen options may cost together.

    Raises:
        ValueError: a budget that the cheapest options exceed, named.
    """
    for name, budget in budgets.items():
        least = sum(min(options) for options in costs[name])
        if least > budget:
            most = sum(max(options) for options in costs[name])
            raise ValueError(f"{name}={budget:g}: allowed are {least:g} (least) to {most:g} (all)")
    layer = np.repeat(np.arange(len(errors)), [len(options) for options in errors])
    flat = np.concatenate([np.asarray(options, dtype=float) for options in errors])
    ones, columns = np.ones(len(flat)), np.arange(len(flat))
    constraints = [LinearConstraint(csr_array((ones, (layer, columns))), 1, 1)]
    for name, budget in budgets.items():
        cost = np.concatenate([np.asarray(options, dtype=float) for options in costs[name]])
        # Both sides scaled, for the solver's tolerances are absolute.
        constraints.append(LinearConstraint(cost[None] / max(budget, 1e-30), ub=1))
    result = milp(
        flat / max(flat.max(), 1e-30),
        integrality=ones,
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 1e-6},
    )
    if result.x is None:
        raise ValueError(f"no choice of bits fits {', '.join(budgets)} together")
    return [int(result.x[layer == number].argmax()) for number in range(len(errors))]


def mixed_bits(
    sensitivity: Sensitivity,
    size_kb: float | None = None,
    gbops: float | None = None,
) -> dict[str, Bits]:
    """Path → bits of weights and of activations, under a budget.

    Errors count as if they added up over layers, and over weights and activations. Where no bits of
    activations (or weights) were measured, these stay as they are: None.

    Args:
        size_kb: of all layers' weights, scales and biases, in units of 1000 bytes.
        gbops: MACs × bits × bits of one call on one sample, in 10⁹.

    Raises:
        ValueError: no budget, or one that nothing fits.
    """
    budgets = {"size_kb": size_kb, "gbops": gbops}
    given = {name: float(value) for name, value in budgets.items() if value is not None}
    if not given:
        raise ValueError("size_kb=null, gbops=null: give one budget or both")
    options = [_options(layer) for layer in sensitivity.layers]
    errors = [
        [_error(layer, bits) for bits in offered]
        for layer, offered in zip(sensitivity.layers, options, strict=True)
    ]
    costs = {
        name: [
            [_COSTS[name](layer, bits) for bits in offered]
            for layer, offered in zip(sensitivity.layers, options, strict=True)
        ]
        for name in given
    }
    chosen = allocate(errors, costs, given)
    return {
        layer.path: offered[number]
        for layer, offered, number in zip(sensitivity.layers, options, chosen, strict=True)
    }


def totals(sensitivity: Sensitivity, bits: Mapping[str, Bits]) -> dict[str, float]:
    """`size_kb`, `gbops` and the sum of `error`s of a choice."""
    layers = [(layer, bits[layer.path]) for layer in sensitivity.layers]
    return {
        **{name: sum(cost(*pair) for pair in layers) for name, cost in _COSTS.items()},
        "error": sum(_error(*pair) for pair in layers),
    }


def mixed_spec(spec: Spec, bits: Mapping[str, Bits]) -> Spec:
    """`spec` with bits of their own for all these layers of the UNet."""
    layers = {
        path: {"weights": {"bits": weights}, "activations": {"bits": activations}}
        for path, (weights, activations) in bits.items()
    }
    return replace(spec, parts=("unet",), first_last="same", attention=None, layers=layers)


def _options(layer: LayerSensitivity) -> list[Bits]:
    measured = [sorted(layer.errors.get(kind, {})) for kind in ("weights", "activations")]
    nothing: list[int | None] = [None]
    weights, activations = ([*widths] or nothing for widths in measured)
    return [(w, a) for w in weights for a in activations]


def _error(layer: LayerSensitivity, bits: Bits) -> float:
    pairs = zip(("weights", "activations"), bits, strict=True)
    return sum(layer.mean(kind, width) for kind, width in pairs if width is not None)


def _size_kb(layer: LayerSensitivity, bits: Bits) -> float:
    size = layer.plain_bytes if bits[0] is None else layer.stored_bytes[bits[0]]
    return size / 1000


def _gbops(layer: LayerSensitivity, bits: Bits) -> float:
    weights, activations = (32 if width is None else width for width in bits)
    return layer.macs * weights * activations / 1e9


_COSTS = {"size_kb": _size_kb, "gbops": _gbops}
