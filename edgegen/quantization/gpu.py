"""Configurations of torchao's own, for its kernels on GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..cost import cost_mode
from .choice import parts_of
from .engines import missing


@contextmanager
def torchao_quantized(
    target: Any,
    config: str = "Int8WeightOnlyConfig",
    settings: Mapping[str, Any] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Iterator[list[str]]:
    """A configuration of torchao at work on the linear layers of a UNet while this is open.

        with torchao_quantized(pipe, "Int4WeightOnlyConfig", {"group_size": 64}): ...

    Args:
        target: a diffusers pipeline, or a UNet.
        config: a class of `torchao.quantization`, and `settings`: what it takes.
        include, exclude: patterns of module paths such as `unet.mid_block.*`.

    Yields the paths of what is quantized.

    Raises:
        ValueError: torchao is not installed, has no such configuration, or nothing is quantized.
    """
    quantize, made = _torchao(config, settings or {})
    unet = parts_of(target, ("unet",))["unet"]
    layers = {
        f"unet.{name}": layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear)
        and any(fnmatchcase(f"unet.{name}", pattern) for pattern in include)
        and not any(fnmatchcase(f"unet.{name}", pattern) for pattern in exclude)
    }
    if not layers:
        raise ValueError(f"include={list(include)}: fits no linear layer of the UNet")
    chosen = {id(layer) for layer in layers.values()}
    before = {
        name: (dict(layer._parameters), layer.__dict__.get("extra_repr"))
        for name, layer in layers.items()
    }
    dynamic = "DynamicActivation" in config
    try:
        quantize(unet, made, lambda layer, _: id(layer) in chosen)
        with ExitStack() as stack:
            stack.enter_context(cost_mode(unet, lambda: id(chosen)))
            for name, layer in layers.items():
                _tell_bits(stack, layer, before[name][0]["weight"], dynamic)
            yield list(layers)
    finally:
        for name, layer in layers.items():
            parameters, described = before[name]
            layer._parameters.update(parameters)
            if described is None:  # torchao tells of its weights there
                layer.__dict__.pop("extra_repr", None)


def _tell_bits(stack: ExitStack, layer: Any, plain: Any, dynamic: bool) -> None:
    """Let the cost counter know what the weight is stored as."""
    sizes = _stored(layer.weight)
    bias = 0 if layer.bias is None else layer.bias.nbytes
    full = 8.0 * plain.element_size()
    told = {
        "weight_bits": min(full, 8.0 * max(sizes) / plain.numel()),  # the others are scales
        "act_bits": 8.0 if dynamic else full,
        "stored_bytes": sum(sizes) + bias,
    }
    for name, value in told.items():
        setattr(layer, name, value)
        stack.callback(layer.__dict__.pop, name, None)


def _stored(tensor: Any) -> list[int]:
    """Bytes of the plain tensors that a tensor of torchao is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.nbytes]
    parts = tensor.__tensor_flatten__()[0]
    return [size for name in parts for size in _stored(getattr(tensor, name))]


def _torchao(config: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """`quantize_` and the configuration."""
    try:
        from torchao import quantization
        from torchao.core.config import AOBaseConfig
    except ImportError as error:
        raise ValueError(missing(f"config={config}")) from error
    found = {
        name: each
        for name, each in vars(quantization).items()
        if isinstance(each, type) and issubclass(each, AOBaseConfig)
    }
    if config not in found:
        raise ValueError(f"config={config}: allowed are {', '.join(sorted(found))}")
    try:
        return quantization.quantize_, found[config](**settings)
    except (TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"settings={dict(settings)}: {config}: {reason}") from error
