"""Classifier-free guidance, and its scale as an input of the network (Meng et al. 2023)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

EDIT_SCALES = (7.5, 1.5)
"""Guidance by instruction and by picture where a model says nothing; the defaults of diffusers'
InstructPix2Pix pipeline."""
_LEAST_EDIT_WIDTH = 8


def guide(without: Tensor, given: Tensor, scale: float | Tensor) -> Tensor:
    """ε(∅) + s·(ε(c) − ε(∅)) of two (B, C, H, W); the scale is a number or (B,)."""
    return without + _wide(scale, given) * (given - without)


def guide_edit(
    neither: Tensor, image: Tensor, both: Tensor, scale: float | Tensor, image_scale: float | Tensor
) -> Tensor:
    """An editor's three branches combined (Brooks et al. 2023, equation 3), (B, C, H, W) each.

    Args:
        neither, image, both: predictions without any condition, with the picture, and with the
            instruction too.
        scale, image_scale: guidance by instruction and by picture, numbers or (B,).
    """
    by_text = _wide(scale, both) * (both - image)
    return neither + by_text + _wide(image_scale, image) * (image - neither)


def _wide(scale: float | Tensor, like: Tensor) -> float | Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1)) if isinstance(scale, Tensor) else scale


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sinusoidal features of guidance scales, (B,) to (B, width).

    As diffusers' pipelines hand them to a UNet with `time_cond_proj_dim`, which takes scales that
    begin at 0: 1000·(s − 1) at geometric frequencies from 1 to 1/10000, sines first.

    Raises ValueError for a width below 4.
    """
    if width < 4:
        raise ValueError(f"width={width}: must be 4 or more")
    # `get_timestep_embedding` of diffusers rounds its frequencies otherwise, which at angles of
    # thousands is no longer what a pipeline hands over.
    half = width // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=scale.device) * -rate)
    angles = 1000 * (scale - 1).float()[:, None] * frequencies
    features = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(features, (0, width % 2))


def guidance_input(unet: Any, scale: float, count: int) -> dict[str, Tensor]:
    """The keyword argument by which a UNet takes the guidance scale, for a batch of `count`.

    Empty for one that does not take it, whose branches are to be combined by `guide` instead.
    """
    width = getattr(unet.config, "time_cond_proj_dim", None)
    if width is None:
        return {}
    # On the CPU, and in float64 until 1 is taken off, as in diffusers' pipelines.
    features = guidance_embedding(torch.full((count,), scale, dtype=torch.float64), width)
    return {"timestep_cond": features.to(unet.device, unet.dtype)}


def edit_guidance_embedding(scale: Tensor, image_scale: Tensor, width: int) -> Tensor:
    """Features of an editor's two scales, (B,) each to (B, width).

    Half of them of each scale, as `guidance_embedding` makes them. They are never all zero, which
    is what a network sees that is told nothing: diffusers' own InstructPix2Pix pipeline knows of no
    such input.

    Raises ValueError for a width below 8.
    """
    if width < _LEAST_EDIT_WIDTH:
        raise ValueError(f"width={width}: must be {_LEAST_EDIT_WIDTH} or more")
    return torch.cat(
        [
            guidance_embedding(scale, width - width // 2),
            guidance_embedding(image_scale, width // 2),
        ],
        1,
    )


@contextmanager
def edit_guidance(pipe: Any, scale: float, image_scale: float) -> Iterator[dict[str, float]]:
    """What to call an InstructPix2Pix pipeline with, to be guided by these scales.

        with edit_guidance(pipe, 7.5, 1.5) as scales:
            pipe("make it red", image, **scales)

    A UNet that takes the scales as inputs gets them while this is open, and evaluates one branch.
    """
    width = getattr(pipe.unet.config, "time_cond_proj_dim", None)
    if width is None:
        yield {"guidance_scale": scale, "image_guidance_scale": image_scale}
        return
    pair = [torch.tensor([each], dtype=torch.float64) for each in (scale, image_scale)]
    features = edit_guidance_embedding(pair[0], pair[1], width)

    def add(unet: Any, args: Any, kwargs: Any) -> Any:
        given = features.to(unet.device, unet.dtype).expand(len(args[0]), -1)
        return args, {**kwargs, "timestep_cond": given}

    hook = pipe.unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield {"guidance_scale": 1.0, "image_guidance_scale": image_scale}
    finally:
        hook.remove()


def call_guidance(
    pipe: Any, scale: float, image_scale: float | None = None
) -> AbstractContextManager[dict[str, float]]:
    """What to call any pipeline with, to be guided by these scales; see `edit_guidance`.

    Args:
        image_scale: guidance by the picture; None for the pipeline's own.

    Raises ValueError for an `image_scale` where the pipeline takes none.
    """
    taken = inspect.signature(pipe.__call__).parameters.get("image_guidance_scale")
    if taken is not None:
        return edit_guidance(pipe, scale, taken.default if image_scale is None else image_scale)
    if image_scale is not None:
        raise ValueError(f"image_guidance={image_scale:g}: {type(pipe).__name__} takes none")
    return nullcontext({"guidance_scale": scale})
