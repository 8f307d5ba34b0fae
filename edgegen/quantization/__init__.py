"""Quantization: integer grids, calibration, and models whose layers compute on them.

`quantized` simulates while a `with` block is open, `quantize_` is for good.
"""

from __future__ import annotations

from .calibration import record_calls
from .calls import Call
from .engines import executed
from .gpu import torchao_quantized
from .method import attach_steps, quantize_, quantized
from .presets import parse_spec, presets
from .report import Report
from .saving import is_quantized, load_quantized
from .spec import ActivationSpec, CalibrationSpec, Spec, WeightSpec

__all__ = [
    "ActivationSpec",
    "CalibrationSpec",
    "Call",
    "Report",
    "Spec",
    "WeightSpec",
    "attach_steps",
    "executed",
    "is_quantized",
    "load_quantized",
    "parse_spec",
    "presets",
    "quantize_",
    "quantized",
    "record_calls",
    "torchao_quantized",
]
