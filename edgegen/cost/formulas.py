"""Multiply-accumulates (MACs) of one operator call, or an honest "unknown".

Formulas come from torch's own `torch.utils.flop_counter.flop_registry` (looked up at the time of
the call, so formulas that a user registers with `register_flop_formula` count too) and from the
few below that it lacks. 1 MAC = 2 FLOPs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry


class Kind(Enum):
    """What an operator is to the counter."""

    CONV = "conv"  # convolution, forward or transposed
    MATMUL = "matmul"  # matrix product: linear or attention, decided by its operands
    ATTENTION = "attention"  # fused scaled dot product attention
    FREE = "free"  # no MACs by convention: elementwise, normalisation, copies, reductions, …
    ROWS = "rows"  # free, and reads no more of its first tensor than it gives
    NEW = "new"  # allocates and touches nothing
    NO_DATA = "no data"  # no MACs and no bytes: views, queries
    COMPOSITE = "composite"  # runs as other operators, which are counted instead
    UNKNOWN = "unknown"  # may compute; no formula


def _sdpa(query: Any, key: Any, value: Any, *_: Any) -> int:
    """QKᵀ and AV of (…, heads, S, D) shapes; with grouped keys every query head still works."""
    *batch, queries, width = query
    return 2 * prod(batch) * queries * key[-2] * (width + value[-1])


def _product(a: Any, b: Any, *_: Any) -> int:
    """(…, M, K) × (…, K, N) and the vector forms (M, K) × (K) and (K) × (K)."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _added_product(_: Any, a: Any, b: Any, *__: Any) -> int:
    return _product(a, b)


def _linear(a: Any, b: Any, *_: Any) -> int:
    """(…, K) × (N, K), or (K): the weight is stored row by row."""
    return 2 * prod(a) * (b[0] if len(b) > 1 else 1)


def _product_by_rows(a: Any, b: Any, *_: Any) -> int:
    """(M, K) × (N, K): the weight is stored row by row."""
    return 2 * prod(a) * b[0]


# FLOPs over shapes: what torch's registry lacks, restricts (equal head counts in attention), or,
# for the plain products, takes 50 µs a call to work out.
_FORMULAS: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "aten::_scaled_dot_product_flash_attention": _sdpa,
    "aten::_scaled_dot_product_efficient_attention": _sdpa,
    "aten::_scaled_dot_product_cudnn_attention": _sdpa,
    "aten::_scaled_dot_product_fused_attention_overrideable": _sdpa,
    "aten::_scaled_dot_product_attention_math_for_mps": _sdpa,
    "aten::linear": _linear,
    "aten::mm": _product,
    "aten::bmm": _product,
    "aten::addmm": _added_product,
    "aten::baddbmm": _added_product,
    "aten::_int_mm": _product,
    "aten::mv": _product,
    "aten::dot": _product,
    "aten::vdot": _product,
    "aten::addmv": _added_product,
    "aten::addbmm": _added_product,
    "aten::_addmm_activation": _added_product,
    "aten::_weight_int8pack_mm": _product_by_rows,
}


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


# Zero MACs by the convention of both counts. Elementwise operators carry torch's `pointwise` tag
# and are not listed; whatever is neither marked so nor listed is reported as uncounted.
_FREE = _aten(
    # normalisation, softmax
    "native_group_norm native_layer_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update _fused_rms_norm "
    "cudnn_batch_norm linalg_vector_norm norm _softmax _log_softmax _safe_softmax "
    # reductions, sorting, scans
    "sum mean prod amax amin aminmax max min argmax argmin any all var var_mean std std_mean "
    "cumsum cumprod logsumexp sort topk _unique2 median count_nonzero equal nonzero "
    "searchsorted bucketize isin "
    # copies, layout, indexing
    "cat stack copy_ copy _to_copy clone repeat index_put index_put_ _index_put_impl_ "
    "scatter scatter_ scatter_add masked_fill masked_select roll flip constant_pad_nd "
    "reflection_pad1d reflection_pad2d replication_pad2d replication_pad3d pixel_shuffle "
    "pixel_unshuffle im2col col2im tril triu repeat_interleave select_scatter slice_scatter "
    "native_channel_shuffle "
    # resampling, pooling
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d "
    "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa avg_pool2d avg_pool3d "
    "max_pool2d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d grid_sampler_2d "
    # dropout, random numbers, constants
    "native_dropout bernoulli bernoulli_ rand randn randint randperm rand_like randn_like "
    "randint_like normal normal_ uniform_ random_ zeros zeros_like new_zeros ones ones_like "
    "new_ones full full_like new_full arange linspace eye scalar_tensor fill_ zero_ "
    "lift_fresh_copy _local_scalar_dense _assert_async "
    # fake quantization: a few elementwise operations
    "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams "
    "_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine"
) | frozenset(
    f"quantized_decomposed::{name}_{scope}"
    for name in ("quantize", "dequantize")
    for scope in ("per_tensor", "per_channel", "per_channel_group", "per_token")
)

_ADDS = re.compile(r"aten::_?(add|badd)(mm|bmm|mv).*")

_ROWS = _aten("embedding index _unsafe_index index_select gather take")

_NEW = _aten("empty empty_like empty_strided new_empty new_empty_strided lift_fresh")

_NO_DATA = _aten(
    "_unsafe_view is_same_size is_pinned resize_ set_ _fused_sdp_choice _assert_tensor_metadata "
    "sym_size sym_stride sym_numel sym_storage_offset is_contiguous is_strides_like_format "
    "sym_is_contiguous is_non_overlapping_and_dense size stride storage_offset numel dim"
) | {"prim::device", "prim::layout"}


def op_name(func: Any) -> str:
    """Name of an operator without its overload, such as `aten::addmm`."""
    packet = getattr(func, "_overloadpacket", None)
    return packet._qualified_op_name if packet is not None else str(func)


def kind(func: Any) -> Kind:
    """What `func` (an `OpOverload` or a higher-order operator) is to the counter."""
    packet = getattr(func, "_overloadpacket", None)
    if packet is None:
        return Kind.UNKNOWN
    name = op_name(func)
    if name in _FORMULAS or packet in flop_registry:
        if "attention" in name:
            return Kind.ATTENTION
        return Kind.CONV if "conv" in name else Kind.MATMUL
    if name in _FREE:
        return Kind.FREE
    if name in _ROWS:
        return Kind.ROWS
    if name in _NEW:
        return Kind.NEW
    if name in _NO_DATA:
        return Kind.NO_DATA
    # Under inference mode `linear`, `conv2d`, `scaled_dot_product_attention` … arrive whole.
    if func._can_decompose():
        return Kind.COMPOSITE
    if func.is_view or torch.Tag.inplace_view in func.tags:
        return Kind.NO_DATA
    if torch.Tag.pointwise in func.tags:
        return Kind.FREE
    return Kind.UNKNOWN


def operands(func: Any, args: tuple[Any, ...]) -> list[torch.Tensor]:
    """The two factors of a convolution or matrix product; an added bias or mask is neither."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return tensors[1:3] if _ADDS.fullmatch(op_name(func)) else tensors[:2]


def attention_macs(query: torch.Size, key: torch.Size, value: torch.Size) -> int:
    """MACs of QKᵀ and AV for shapes (…, heads, S, D), a causal mask or not."""
    return _sdpa(query, key, value) // 2


def macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """MACs of one call of an operator that has a formula.

    Args:
        func: the `OpOverload`.
        args, kwargs: its arguments; tensors may be real, fake or meta.
        out: what it returned.
    """
    own = _FORMULAS.get(op_name(func))
    if own is not None:
        return own(*map(_shape, args)) // 2
    formula = flop_registry[func._overloadpacket]
    # What `register_flop_formula` wraps takes shapes; the wrapper's own way to them is slow.
    of_shapes = getattr(formula, "__wrapped__", None)
    if of_shapes is not None and isinstance(out, torch.Tensor) and not kwargs:
        return of_shapes(*map(_shape, args), out_shape=out.shape) // 2
    return formula(*args, **kwargs, out_val=out) // 2


def _shape(argument: Any) -> Any:
    return argument.shape if isinstance(argument, torch.Tensor) else argument
