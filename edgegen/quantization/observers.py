"""Observers: what calibration remembers of the values at one place."""

from __future__ import annotations

import torch

from .grids import Grid
from .ranges import find_range
from .spec import ActivationSpec

VALUES = 2048  # of one call that are kept, where not the extremes alone are


class Observer:
    """Values seen at one place, by group of timesteps and by part of the channels.

    Args:
        spec: what to find scales for.
        axis, split: of the two parts; see `StaticQuantizer`.
        groups: of timesteps.
    """

    def __init__(
        self, spec: ActivationSpec, axis: int = -1, split: int | None = None, groups: int = 1
    ) -> None:
        self.spec, self.axis, self.split, self.groups = spec, axis, split, groups
        self._seen: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._generator = torch.Generator().manual_seed(0)

    @property
    def parts(self) -> int:
        return 1 if self.split is None else 2

    @property
    def _extremes_alone(self) -> bool:
        whole = self.spec.range == "percentile" and self.spec.percentile == 100
        return whole or self.spec.range == "minmax"

    @property
    def reached(self) -> bool:
        return bool(self._seen)

    @torch.no_grad()
    def see(self, x: torch.Tensor, group: int = 0) -> None:
        """Take note of a tensor of any shape."""
        parts = [x]
        if self.split is not None:
            parts = list(x.split([self.split, x.shape[self.axis] - self.split], dim=self.axis))
        for part, tensor in enumerate(parts):
            values = tensor.detach().float().reshape(-1)
            kept = self._seen.setdefault((group, part), [])
            if self._extremes_alone:
                extremes = torch.stack(values.aminmax())
                kept[:] = [torch.stack(torch.cat([*kept, extremes]).aminmax())]
            else:  # a sample without them: they would weigh more than their share
                kept.append(self._sample(values))

    def scales(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales and zero points (groups, parts), float32.

        Raises:
            ValueError: a group of timesteps that no call came from, by its number; or values that
                are not finite.
        """
        spec = self.spec
        rows = []
        for group in range(self.groups):
            for part in range(self.parts):
                if (group, part) not in self._seen:
                    raise ValueError(
                        f"no calibration call from group {group} of {self.groups} groups of "
                        "timesteps: calibrate with more steps, or take fewer groups"
                    )
                values = torch.cat(self._seen[group, part])
                if not values.is_meta and not values.isfinite().all():
                    raise ValueError("calibration met values that are not finite")
                found = find_range(
                    values[None], grid, spec.range, percentile=spec.percentile, p=spec.p
                )
                rows.append(found)
        shape = (self.groups, self.parts)
        scale = torch.cat([row[0] for row in rows]).view(shape)
        points = [row[1] for row in rows if row[1] is not None]
        return scale, torch.cat(points).view(shape) if points else None

    def _sample(self, values: torch.Tensor) -> torch.Tensor:
        if len(values) <= VALUES:
            return values
        # Drawn, since a fixed stride would always meet the same columns of a picture.
        drawn = torch.randint(len(values), (VALUES,), generator=self._generator)
        return values[drawn.to(values.device)]
