"""Energy counters from a made-up sysfs, and an estimate by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgegen.cost import CostTracker
from edgegen.cost.energy import PJ_PER_BYTE, PJ_PER_MAC, Rapl, estimated_joules, rapl


def zone(root, path, name, microjoules, limit=1_000_000):
    folder = root / path
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_counters_of_packages_and_memory_add_up(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 999_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 5)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 7)  # in the package already
    whole = zone(tmp_path, "intel-rapl:2", "psys", 9)  # all of it again
    meter = Rapl(tmp_path)
    assert meter() == 0
    first.write_text("1100")
    memory.write_text("505")
    cores.write_text("900000")
    whole.write_text("900000")
    assert meter() == pytest.approx(1500e-6)
    second.write_text("4000")  # turned over at a million: 1 000 + 4 000
    assert meter() == pytest.approx(6500e-6)
    assert meter() == pytest.approx(6500e-6)


def test_machines_without_counters_have_none(tmp_path):
    assert rapl(tmp_path) is None
    assert rapl(tmp_path / "missing") is None
    zone(tmp_path, "intel-rapl:0", "package-0", "not a number")
    assert rapl(tmp_path) is None
    with pytest.raises(ValueError, match="no energy counter"):
        Rapl(tmp_path / "missing")


@pytest.mark.parametrize(("dtype", "width", "size"), [("float32", 32, 4), ("bfloat16", 16, 2)])
def test_the_estimate_is_macs_and_bytes_at_their_energies(dtype, width, size):
    layer = nn.Linear(8, 3, bias=False, dtype=getattr(torch, dtype))
    with CostTracker({"unet": layer}) as cost:
        layer(torch.zeros(5, 8, dtype=getattr(torch, dtype)))
    macs, moved = 5 * 8 * 3, size * (5 * 8 + 8 * 3 + 5 * 3)
    joules = (macs * PJ_PER_MAC[width] + moved * PJ_PER_BYTE) * 1e-12
    assert estimated_joules(cost.summary()) == pytest.approx(joules)
    assert estimated_joules(cost.summary(images=5)) == pytest.approx(joules / 5)


def test_fewer_bits_take_less():
    assert PJ_PER_MAC[8] < PJ_PER_MAC[16] < PJ_PER_MAC[32] < PJ_PER_BYTE
