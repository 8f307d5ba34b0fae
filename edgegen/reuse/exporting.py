"""Both graphs of a UNet under a reuse method as exported programs: what edge runtimes take."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .context import Features
from .method import Reuse


class Pass(nn.Module):
    """One pass of a UNet, with the features that a reuse method keeps as inputs and outputs.

    Args:
        method: entered, and in no run.
        full: a full pass, or one that reuses.

    Shape: samples (B, C, H, W), a timestep () or (B,), text features (B, T, D) and, for a pass that
    reuses, features as an earlier pass gave them; for `linear` and `quadratic` as extrapolated from
    those. Returns the UNet's output and the features for the passes to come.
    """

    def __init__(self, method: Reuse, full: bool) -> None:
        super().__init__()
        self.unet, self.full = method.unet, full
        self._context = (method.context,)  # no part of the module

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor,
        features: tuple[Features, ...] = (),
    ) -> tuple[Tensor, tuple[Features, ...]]:
        (context,) = self._context
        slot = context.new_slot(is_open=True)
        for site, value in zip(slot.sites, features, strict=not self.full):
            site.value = tuple(value)
        slot.full = context.full = self.full
        context.slot = slot
        out = self.unet(sample, timestep, text, return_dict=False)[0]
        return out, tuple(site.value for site in slot.sites)


class ExportedPasses(NamedTuple):
    """The programs of a full pass and of one that reuses, called as a `Pass` is."""

    full: ExportedProgram
    reuse: ExportedProgram


@torch.no_grad()
def export_passes(method: Reuse, sample: Tensor, timestep: Tensor, text: Tensor) -> ExportedPasses:
    """Export what `clockwork(pipe)` and its kin gave, for inputs of these shapes.

        with clockwork(pipe, 2) as method:
            full, reuse = export_passes(method, sample, timestep, text)
        out, features = full.module()(sample, timestep, text)
        out, features = reuse.module()(sample, timestep, text, features)

    Within `quantized` the programs are quantized too. Which pass a step takes is the runtime's
    business, as the clock says. Scales by groups of timesteps stay at the group that is current.

    Raises RuntimeError within a run.
    """
    if method.steps.running:
        raise RuntimeError("export_passes: not within a run, whose features would be lost")
    inputs: tuple[Any, ...] = (sample, timestep, text)
    try:
        _, features = Pass(method, True)(*inputs)
        made = [
            torch.export.export(Pass(method, full), given, strict=False)
            for full, given in ((True, inputs), (False, (*inputs, features)))
        ]
    finally:
        method.release()
    return ExportedPasses(*made)
