"""Quantized twins of `nn.Linear` and `nn.Conv2d`, which take a layer's place in a model.

A twin shares the parameters of its layer under the same names, and all it has beside them stays out
of the `state_dict`, until `persist`: so whatever looks at the weights of a model finds them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .quantizers import Quantizer

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class StoredWeight(Protocol):
    """A weight in another form than a plain tensor: integers, low-rank updates, codebooks."""

    @property
    def bits(self) -> float: ...

    @property
    def stored_bytes(self) -> int: ...

    def __call__(self, dtype: torch.dtype = ...) -> torch.Tensor: ...

    def persist(self) -> None: ...


class Quantized(nn.Module):
    """What both twins have in common.

    Attributes:
        stored: the weight as it is stored; None: as the layer has it.
        inputs: the quantizer of what the layer takes, or None.
        correction: added to the bias, (C_out,), or None.
        checkpointed: whether backward passes compute the layer anew, instead of keeping its weight
            and what its quantizers made.
    """

    checkpointed = False

    stored: Any
    inputs: Any
    bias: Any
    like: torch.Tensor
    correction: torch.Tensor | None

    def _take_over(
        self, layer: nn.Module, stored: StoredWeight | None, inputs: Quantizer | None
    ) -> None:
        weight: Any = layer.weight
        self.weight, self.bias = weight, layer.bias
        self.stored, self.inputs = stored, inputs
        # Tells dtype and device, whatever becomes of the weight.
        self.register_buffer("like", weight.detach().new_empty(0), persistent=False)
        self.register_buffer("correction", None, persistent=False)
        self.train(layer.training)
        for name in _HOOKS:  # those of the layer go on, and can be removed by their handles
            self.__dict__[name] = layer.__dict__[name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            made: Any = checkpoint(self._outputs, x, use_reentrant=False, preserve_rng_state=False)
            return made
        return self._outputs(x)

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @property
    def weight_bits(self) -> float:
        return 8.0 * self.like.element_size() if self.stored is None else float(self.stored.bits)

    @property
    def act_bits(self) -> float:
        return 8.0 * self.like.element_size() if self.inputs is None else float(self.inputs.bits)

    @property
    def stored_bytes(self) -> int:
        """Of the weight, the bias and the scales of the input."""
        biases = 0 if self._bias() is None else self.out_width
        scales = 0 if self.inputs is None else self.inputs.stored_bytes
        weight = self.weight.nbytes if self.stored is None else self.stored.stored_bytes
        return weight + biases * self.like.element_size() + scales

    @property
    def out_width(self) -> int:
        """C_out."""
        raise NotImplementedError

    def persist(self) -> None:
        """Give up the layer's own weight: from now on the quantized one is all there is."""
        bias = self._bias()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.correction = None
        if self.stored is not None:
            del self._parameters["weight"]
            self.stored.persist()
        if self.inputs is not None:
            self.inputs.persist()

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight if self.stored is None else self.stored(dtype)

    def _bias(self) -> torch.Tensor | None:
        if self.correction is None:
            return self.bias
        return self.correction if self.bias is None else self.bias + self.correction

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "weight" not in self._parameters:  # given up
            return self.stored(self.like.dtype)
        return super().__getattr__(name)


class QuantizedLinear(Quantized, nn.Linear):
    """Takes the place of a linear layer.

    Args:
        layer: whose parameters and hooks it shares.
        stored: its weight (C_out, C_in); None leaves that alone.
        inputs: quantizes what it takes, (…, C_in); None leaves that alone.

    Shape: (…, C_in) → (…, C_out).
    """

    def __init__(
        self, layer: nn.Linear, stored: Any = None, inputs: Quantizer | None = None
    ) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, bias=False, device="meta")
        self._take_over(layer, stored, inputs)

    @property
    def out_width(self) -> int:
        return self.out_features

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        if self.inputs is not None:
            x = self.inputs(x)
        return F.linear(x, self._weight(x.dtype), self._bias())


class QuantizedConv2d(Quantized, nn.Conv2d):
    """Takes the place of a convolution.

    Args:
        layer: whose parameters and hooks it shares.
        stored: its weight (C_out, C_in / groups, k, k); None leaves that alone.
        inputs: quantizes what it takes, (B, C_in, H, W); None leaves that alone.

    Shape: (B, C_in, H, W) → (B, C_out, H', W').
    """

    def __init__(
        self, layer: nn.Conv2d, stored: Any = None, inputs: Quantizer | None = None
    ) -> None:
        nn.Conv2d.__init__(
            self,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            bias=False,
            padding_mode=layer.padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        self._take_over(layer, stored, inputs)

    @property
    def out_width(self) -> int:
        return self.out_channels

    def _outputs(self, x: torch.Tensor) -> torch.Tensor:
        if self.inputs is not None:
            x = self.inputs(x)
        return self._conv_forward(x, self._weight(x.dtype), self._bias())


TWINS: dict[type[nn.Module], type[Quantized]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
}


def twin_of(layer: nn.Module, stored: Any = None, inputs: Quantizer | None = None) -> Any:
    """The quantized twin of a linear layer or convolution."""
    cls: Any = TWINS[type(layer)]
    return cls(layer, stored, inputs)
