"""What the replaced forwards of a cut UNet read and write: plain attributes, and no step counter.

Everything here runs inside compiled graphs. `full` is the only thing that changes their course, so
there are two of them; all decisions are made elsewhere, between the UNet's evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

Features = tuple[torch.Tensor, ...]


class Site:
    """A place where features cross from the part left out to the part that runs."""

    def __init__(self) -> None:
        self.value: Features = ()  # of the last pass, or as predicted
        self.past: list[
            tuple[float, Features]
        ] = []  # (timestep, value) of full passes, newest first


class Slot:
    """All that is kept of one stream.

    Attributes:
        open: whether an evaluation may come.
        full: whether it is, or was, a full one.
        filled: whether there is anything to reuse.
        r_in: features before the cut, (B, C, H, W); `time`, `text`: the UNet's embedding of the
            timestep (B, D) and its text features (B, T, D). Kept if asked for.
        before: `r_in` of the step before.
    """

    def __init__(self, sites: int, is_open: bool = False) -> None:
        self.open = is_open
        self.full = True
        self.filled = False
        self.sites = [Site() for _ in range(sites)]
        self.r_in: torch.Tensor | None = None
        self.before: torch.Tensor | None = None
        self.time: torch.Tensor | None = None
        self.text: Any = None


class Context:
    """Shared by all replaced forwards of one UNet.

    Args:
        sites: places where features cross.
        keeps: which of `r_in`, `time` and `text` to keep at each evaluation.
        adaptor: predicts r_out from (r_in, last r_out, time, text); without one the site's value is
            taken as it stands.
        refuse: raises the error for an evaluation that must not be; None lets all pass.
        exchange: gives what goes on in place of the r_out of a full pass, which is kept as it was.
    """

    def __init__(
        self,
        sites: int = 1,
        keeps: frozenset[str] = frozenset(),
        adaptor: Callable[..., torch.Tensor] | None = None,
        refuse: Callable[[], NoReturn] | None = None,
        exchange: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self.sites = sites
        self.full = True
        self.slot = Slot(sites)
        self.keeps_r_in = "r_in" in keeps
        self.keeps_time = "time" in keeps
        self.keeps_text = "text" in keeps
        self.adaptor = adaptor
        self.refuse = refuse
        self.exchange = exchange

    def clear(self) -> None:
        """Let go of all features, and let no evaluation pass."""
        self.slot = self.new_slot()

    def new_slot(self, is_open: bool = False) -> Slot:
        return Slot(self.sites, is_open)

    def begin(self, hidden: torch.Tensor, time: torch.Tensor | None = None) -> None:
        """The first of the parts left out is reached, with this input."""
        slot = self.slot
        if self.refuse is not None:
            if not slot.open:
                self.refuse()
            slot.open = False
        if not self.full and slot.sites[0].value[0].shape[0] != hidden.shape[0]:
            raise RuntimeError(
                f"the batch changed within a run, from {slot.sites[0].value[0].shape[0]} to "
                f"{hidden.shape[0]}: start a new run, or keep the parts apart by steps.stream(key)"
            )
        if self.keeps_r_in:
            slot.r_in = hidden
        if self.keeps_time:
            slot.time = time

    def note_text(self, text: Any) -> None:
        if self.keeps_text and text is not None:
            self.slot.text = text

    def store(self, value: torch.Tensor) -> torch.Tensor:
        """Keep the r_out of a full pass; returns what goes on from there."""
        self.slot.sites[0].value = (value,)
        return value if self.exchange is None else self.exchange()

    def predict(self) -> torch.Tensor:
        """r_out of a reuse step."""
        slot = self.slot
        (value,) = slot.sites[0].value
        if self.adaptor is None:
            return value
        value = self.adaptor(slot.r_in, value, slot.time, slot.text)
        slot.sites[0].value = (value,)
        return value
