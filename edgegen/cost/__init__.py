"""What a model costs: MACs, BOPs, bytes and parameters, by module and by denoising step."""

from __future__ import annotations

from .bits import HasBits
from .counting import count
from .modes import cost_mode
from .summary import Part, Summary
from .tally import Cost, ModuleCost
from .tracker import CostTracker

__all__ = [
    "Cost",
    "CostTracker",
    "HasBits",
    "ModuleCost",
    "Part",
    "Summary",
    "cost_mode",
    "count",
]
