"""Which layers and attention products a spec means."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..cost.modes import uncompiled
from .attention import REPLACED, find_attention, masked_plainly, processor_of
from .calibration import watched
from .modules import TWINS, Quantized
from .skips import skip_splits
from .spec import PARTS, ActivationSpec, Spec, WeightSpec
from .time_embedding import finite_layers, time_layers

_BY_HANDS = ("unet", "vae")  # whose first and last layers touch pixels or latents


@dataclass(frozen=True)
class Layer:
    """A layer to quantize.

    Attributes:
        path: with the part's name in front.
        split: channels before those of a skip connection; None without one.
        finite: its inputs are all known: they depend on the timestep alone.
    """

    path: str
    module: Any
    weights: WeightSpec
    activations: ActivationSpec
    split: int | None = None
    finite: bool = False


@dataclass
class Choice:
    """What is quantized, by path, and why the rest is not."""

    layers: dict[str, Layer] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def parts_of(target: Any, names: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Name → network (uncompiled) of a pipeline; a bare network counts as `unet`.

    Raises:
        ValueError: one of the names is not there.
    """
    found = {}
    for name in names:
        module = getattr(target, name, None)
        if isinstance(target, nn.Module):
            module = target if name == "unet" else None
        if not isinstance(module, nn.Module):
            raise ValueError(f"parts={name}: this {type(target).__name__} has no {name}")
        found[name] = uncompiled(module)
    return found


def choose(target: Any, spec: Spec) -> Choice:
    """What a spec means for a pipeline.

    Raises:
        ValueError: a pattern or the whole spec fits nothing, a part is not there, or the model is
            quantized already.
    """
    choice = Choice()
    for part, module in parts_of(target, spec.parts).items():
        _choose_layers(choice, part, module, spec, _ends(target, part))
        if spec.attention is not None:
            _choose_attention(choice, part, module, spec)
    _check_patterns(choice, spec)
    if not choice.layers and not choice.attention:
        raise ValueError("the spec quantizes nothing: no layer is included with bits of its own")
    return choice


def _choose_layers(choice: Choice, part: str, module: Any, spec: Spec, ends: set[int]) -> None:
    splits = skip_splits(module)
    times, finite = time_layers(module), finite_layers(module)
    for name, layer in module.named_modules():
        path = f"{part}.{name}"
        if isinstance(layer, Quantized):
            raise ValueError(f"{path} is quantized already")
        if type(layer) not in TWINS:
            own = [p for p in layer.parameters(recurse=False) if p.dim() > 1]
            if own:
                choice.skipped[path] = f"{type(layer).__name__} has no quantized twin"
            continue
        weights, activations = spec.of_layer(path, id(layer) in ends)
        if not spec.covers(path):
            choice.skipped[path] = "not included"
        elif name in times and spec.time_embedding == "keep":
            choice.skipped[path] = "time embedding, kept in full precision"
        elif weights.bits is None and activations.bits is None:
            choice.skipped[path] = "kept in full precision"
        else:
            split = splits.get(name) if activations.split_skips else None
            known = name in finite and spec.time_embedding == "finite"
            choice.layers[path] = Layer(path, layer, weights, activations, split, known)


def _choose_attention(choice: Choice, part: str, module: Any, spec: Spec) -> None:
    for name, attention in find_attention(module).items():
        path = f"{part}.{name}"
        processor = processor_of(attention)
        if not spec.covers(path):
            choice.skipped[path] = "not included"
        elif not masked_plainly(attention):
            choice.skipped[path] = f"attention by {attention.config._attn_implementation}"
        elif type(processor) not in REPLACED:
            choice.skipped[path] = f"attention by {type(processor).__name__}"
        else:
            choice.attention[path] = attention
    for name, other in module.named_modules():
        path = f"{part}.{name}"
        if type(other).__name__.endswith("Attention") and path not in choice.attention:
            choice.skipped.setdefault(path, f"products of {type(other).__name__}, kept as they are")


def _ends(target: Any, part: str) -> set[int]:
    """The first and the last convolution of each network of a part."""
    found: set[int] = set()
    for _, module in watched(target, [part] if part in _BY_HANDS else []):
        convs = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
        found |= {id(each) for each in convs[:1] + convs[-1:]}
    return found


def _check_patterns(choice: Choice, spec: Spec) -> None:
    paths = [*choice.layers, *choice.attention, *choice.skipped]
    for pattern in spec.patterns():
        if not any(fnmatchcase(path, pattern) for path in paths):
            shown = ", ".join(paths[:2])
            raise ValueError(f"pattern {pattern} fits no layer: paths are such as {shown}")
