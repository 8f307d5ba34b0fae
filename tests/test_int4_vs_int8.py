"""The roofline of experiments/int4_vs_int8, against sums by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from edgegen.cost import count
from edgegen.cost.roofline import Device
from edgegen.runs.finished import from_csv

FOLDER = Path(__file__).parents[1] / "experiments" / "int4_vs_int8"


@pytest.fixture(scope="module")
def code() -> ModuleType:
    spec = importlib.util.spec_from_file_location("int4_vs_int8", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_layers_time_and_energy_by_hand(code: ModuleType) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 100, bias=False)).half()
        tokens = torch.zeros(5, dtype=torch.long)
    work = code.layers(net, count(net, tokens))
    assert [each.weights for each in work] == [0, 800]
    rows, linear = work
    assert rows.macs == 0
    assert rows.others == 5 * 8 + 2 * (5 * 8 * 2)  # numbers; of the table only what is taken
    assert linear.macs == 5 * 800
    assert linear.others == 2 * (5 * 8 + 5 * 100)
    assert linear.bytes(4, 8) == 400 + 540
    slow = Device("memory", flops=1e30, bandwidth=1e3, bits=8)
    assert code.seconds([linear], slow, "W4A8") == pytest.approx(0.940)
    weak = Device("arithmetic", flops=1e3, bandwidth=1e30, bits=16)  # twice that at 8 bit
    assert code.seconds([linear], weak, "W8A8") == pytest.approx(8000 / 2e3)
    assert code.seconds([linear], weak, "W4A4") == pytest.approx(8000 / 4e3)
    assert code.joules([linear], "W8A8") == pytest.approx((4000 * 0.3 + 1340 * 162.5) / 1e12)


def test_committed_language_model_is_llama_2_7b() -> None:
    """Weights read a token: 32 layers of 4·4096² + 3·4096·11008, and the head's 32000·4096."""
    rows = from_csv((FOLDER / "results.csv").read_text(encoding="utf-8"))
    token = next(row for row in rows if "one token" in row["workload"] and row["form"] == "W8A8")
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert token["weights_mb"] == pytest.approx(weights / 1e6, rel=1e-3)
    attention = 32 * 2 * 1025 * 4096
    assert token["gmacs"] == pytest.approx((weights + attention) / 1e9, rel=1e-3)
    step = next(row for row in rows if "sd15" in row["workload"])
    assert step["gmacs"] == pytest.approx(2 * 401.6, rel=2e-3)
