"""Forwards that leave blocks out. They replace the blocks' own on the instance while attached.

A block left out returns tensors of the right shapes and no content: nobody reads them, but other
blocks left out and ControlNets add, join and measure them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from .context import Context
from .cut import Cut, Encoder, Place

Forward = Callable[..., Any]
_ATTRIBUTE = "_edgegen_reuse"


def attach(stack: ExitStack, unet: Any, cut: Cut, context: Context) -> None:
    """Put a cut on a UNet until the stack closes.

    Raises:
        ValueError: there is one on it already, or the UNet has no such cut.
    """
    if _ATTRIBUTE in unet.__dict__:
        raise ValueError("a reuse method is attached to this UNet already: leave that one first")
    unet.__dict__[_ATTRIBUTE] = context
    stack.callback(unet.__dict__.pop, _ATTRIBUTE)
    unet.__dict__["__deepcopy__"] = refuse_copy
    stack.callback(unet.__dict__.pop, "__deepcopy__")
    if isinstance(cut, Encoder):
        _skip_encoder(stack, unet, context)
    else:
        _skip_between(stack, unet, cut.place(unet), context)


def site_count(unet: Any, cut: Cut) -> int:
    """Places where features cross from the part left out to the part that runs."""
    return len(_encoder_parts(unet)) if isinstance(cut, Encoder) else 1


def replace_forward(
    stack: ExitStack, module: nn.Module, make: Callable[[Forward], Forward]
) -> None:
    """`module.forward = make(module.forward)` until the stack closes; copying is refused."""
    before = {name: module.__dict__.get(name) for name in ("forward", "__deepcopy__")}
    original, attached = module.forward, [True]
    ours = make(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # Somebody may have wrapped this forward in turn and keep it beyond the stack.
        return ours(*args, **kwargs) if attached else original(*args, **kwargs)

    module.__dict__["forward"] = forward
    module.__dict__["__deepcopy__"] = refuse_copy

    def restore() -> None:
        attached.clear()
        for name, new in (("forward", forward), ("__deepcopy__", refuse_copy)):
            if module.__dict__.get(name) is new:
                del module.__dict__[name]
                if before[name] is not None:
                    module.__dict__[name] = before[name]

    stack.callback(restore)


def refuse_copy(memo: dict[int, Any]) -> None:
    raise RuntimeError(
        "a model cannot be copied while a reuse method is attached to it: the copy would call the "
        "original's blocks; copy it before attaching"
    )


def _skip_between(stack: ExitStack, unet: Any, place: Place, context: Context) -> None:
    """Leave out all between the two ends of a cut when `context.full` is false."""
    (level, layer), (up, up_layer) = place.down, place.up
    entry: list[nn.Module] = []  # the parts left out, in the order of the forward pass

    def hook(module: nn.Module, make: Callable[..., Forward], **settings: Any) -> None:
        first = not entry
        entry.append(module)
        replace_forward(stack, module, partial(make, module, context, first, **settings))

    blocks = list(unet.down_blocks)
    if layer:  # within a block
        attentions = getattr(blocks[level], "attentions", None)
        for i in range(layer, len(blocks[level].resnets)):
            hook(blocks[level].resnets[i], _layer)
            if attentions is not None:
                hook(attentions[i], _attention)
        for downsampler in blocks[level].downsamplers or ():
            hook(downsampler, _downsampler)
        level += 1
    for block in blocks[level:]:
        hook(block, _down)
    ups = list(unet.up_blocks)
    if unet.mid_block is not None:
        hook(unet.mid_block, _mid, last=(up, up_layer) == (0, 0))
    for i, block in enumerate(ups[:up]):
        last = i == up - 1 and not up_layer
        upsamples = last and place.before_upsampler and block.upsamplers is not None
        hook(block, _up, last=last, upsamples=upsamples)
        if upsamples:
            replace_forward(stack, block.upsamplers[0], partial(_upsampler, context))
    if up_layer:  # within a block
        attentions = getattr(ups[up], "attentions", None)
        for i in range(up_layer):
            last = i == up_layer - 1
            hook(ups[up].resnets[i], _layer, last=last and attentions is None)
            if attentions is not None:
                hook(attentions[i], _attention, last=last)
    if not entry:
        raise ValueError("this cut leaves nothing out of this UNet")


def _skip_encoder(stack: ExitStack, unet: Any, context: Context) -> None:
    """Reuse every skip connection and the middle's output."""
    downs = list(unet.down_blocks)
    for number, module in enumerate(_encoder_parts(unet)):
        is_down = any(module is down for down in downs)
        replace_forward(stack, module, partial(_encoder_part, context, number, is_down))


def _encoder_parts(unet: Any) -> list[nn.Module]:
    mid = [] if unet.mid_block is None else [unet.mid_block]
    return [unet.conv_in, *unet.down_blocks, *mid]


def _encoder_part(context: Context, number: int, is_down: bool, forward: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        if number == 0:
            context.begin(args[0])
        site = context.slot.sites[number]
        if context.full:
            out = forward(*args, **kwargs)
            site.value = out[1] if is_down else (out,)
            site.value = (*site.value[:-1], site.value[-1].clone())
            return out
        # A copy: a T2I-Adapter adds to it in place. A down block returns its last skip connection
        # and all of them.
        last = site.value[-1].clone()
        return (last, (*site.value[:-1], last)) if is_down else last

    return run


def _down(block: Any, context: Context, first: bool, forward: Forward) -> Forward:
    def run(hidden_states: torch.Tensor, temb: Any = None, *args: Any, **kwargs: Any) -> Any:
        if first:
            context.begin(hidden_states, temb)
        context.note_text(kwargs.get("encoder_hidden_states"))
        if context.full:
            return forward(hidden_states, temb, *args, **kwargs)
        out = hidden_states
        outs: tuple[torch.Tensor, ...] = ()
        for resnet in block.resnets:
            out = _empty(out, resnet.out_channels)
            outs += (out,)
        for downsampler in block.downsamplers or ():
            out = _downsampled(out, downsampler)
            outs += (out,)
        return out, outs

    return run


def _mid(_: Any, context: Context, first: bool, forward: Forward, last: bool) -> Forward:
    def run(hidden_states: torch.Tensor, temb: Any = None, *args: Any, **kwargs: Any) -> Any:
        if first:
            context.begin(hidden_states, temb)
        context.note_text(kwargs.get("encoder_hidden_states"))
        if context.full:
            out = forward(hidden_states, temb, *args, **kwargs)
            return context.store(out) if last else out
        return context.predict() if last else hidden_states

    return run


def _up(
    block: Any, context: Context, first: bool, forward: Forward, last: bool, upsamples: bool
) -> Forward:
    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if context.full:
            out = forward(hidden_states, *args, **kwargs)
            return context.store(out) if last and not upsamples else out
        size = kwargs.get("upsample_size")
        if not last:
            scale = 2 if block.upsamplers else 1
            return _empty(hidden_states, block.resnets[-1].out_channels, scale, size)
        out = context.predict()
        if upsamples:
            for upsampler in block.upsamplers:
                out = upsampler(out, size)
        return out

    return run


def _upsampler(context: Context, forward: Forward) -> Forward:
    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if context.full:
            hidden_states = context.store(hidden_states)
        return forward(hidden_states, *args, **kwargs)

    return run


def _layer(
    resnet: Any, context: Context, first: bool, forward: Forward, last: bool = False
) -> Forward:
    def run(hidden_states: torch.Tensor, temb: Any = None, *args: Any, **kwargs: Any) -> Any:
        if first:
            context.begin(hidden_states, temb)
        if context.full:
            out = forward(hidden_states, temb, *args, **kwargs)
            return context.store(out) if last else out
        return context.predict() if last else _empty(hidden_states, resnet.out_channels)

    return run


def _attention(
    _: Any, context: Context, first: bool, forward: Forward, last: bool = False
) -> Forward:
    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if context.full:
            out = forward(hidden_states, *args, **kwargs)
            return (context.store(out[0]), *out[1:]) if last else out
        return (context.predict() if last else hidden_states,)

    return run


def _downsampler(module: Any, context: Context, first: bool, forward: Forward) -> Forward:
    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if first:
            context.begin(hidden_states)
        if context.full:
            return forward(hidden_states, *args, **kwargs)
        return _downsampled(hidden_states, module)

    return run


def _empty(like: torch.Tensor, channels: int, scale: int = 1, size: Any = None) -> torch.Tensor:
    height, width = size if size is not None else (scale * n for n in like.shape[2:])
    return like.new_empty((like.shape[0], channels, height, width))


def _downsampled(like: torch.Tensor, downsampler: Any) -> torch.Tensor:
    # Padding 0 stands for one row and column more at the end (`Downsample2D`).
    size = [(n + (2 * downsampler.padding or 1) - 3) // 2 + 1 for n in like.shape[2:]]
    return _empty(like, downsampler.out_channels, size=size)
