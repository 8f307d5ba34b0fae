"""Energy: read from a counter where the machine has one, else estimated from work and traffic."""

from __future__ import annotations

from pathlib import Path

from .summary import Summary
from .tally import ModuleCost

# Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9:
# 45 nm, 0.9 V. A multiplication and an addition, in pJ, by the most bits of an operand.
PJ_PER_MAC = {8: 0.2 + 0.1, 16: 1.1 + 0.4, 32: 3.7 + 0.9}  # int8 into 32-bit sums, float, float
PJ_PER_BYTE = 1300 / 8  # DRAM: 1.3 to 2.6 nJ for 64 bits; the lower end

_POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """The processor's own energy counters (Intel and AMD RAPL, through Linux's powercap).

    Called, it gives the joules that processor packages and memory took since it was made, all that
    ran on the machine included. It must be called before a counter turns over twice, which takes
    minutes to an hour.

    Raises ValueError where there is no counter that can be read: mostly in virtual machines, and
    for users other than root.
    """

    def __init__(self, root: str | Path = _POWERCAP) -> None:
        # Zones are listed side by side, `intel-rapl:0` a package and `intel-rapl:0:2` a part of it.
        # Packages hold their cores and GPU, but not the memory; `psys` holds everything again.
        self._zones = [
            (zone / "energy_uj", _read(zone / "max_energy_range_uj"))
            for zone in sorted(Path(root).glob("*-rapl:*"))
            if _name(zone).startswith(("package", "dram"))
        ]
        self._last = [_read(path) for path, _ in self._zones]
        self._microjoules = 0
        if not self._zones:
            raise ValueError(f"no energy counter that can be read in {root}")

    def __call__(self) -> float:
        for number, (path, limit) in enumerate(self._zones):
            now = _read(path)
            grown = now - self._last[number]
            self._microjoules += grown if grown >= 0 else grown + limit
            self._last[number] = now
        return self._microjoules / 1e6


def rapl(root: str | Path = _POWERCAP) -> Rapl | None:
    """The energy counters of this machine, or None where none can be read."""
    try:
        return Rapl(root)
    except (OSError, ValueError):
        return None


def estimated_joules(summary: Summary) -> float:
    """An estimate of what one picture takes, from multiplications and bytes; no measurement.

    Σ over modules of MACs × energy of a MAC at the module's mean bit width + bytes × energy of
    DRAM access, with the figures of Horowitz 2014 (`PJ_PER_MAC`, `PJ_PER_BYTE`). They are of a
    45 nm process, and bytes are those of unfused operators, each counted as DRAM traffic: an upper
    bound that ranks methods rather than predicts a battery.
    """
    modules = [cost for part in summary.values() for cost in part.total.modules.values()]
    return sum(map(_module_joules, modules)) / summary.images


def _module_joules(cost: ModuleCost) -> float:
    picojoules = cost.bytes * PJ_PER_BYTE
    if cost.macs_all:
        bits = (cost.bops / cost.macs_all) ** 0.5
        widest = max(PJ_PER_MAC)
        width = next((width for width in PJ_PER_MAC if bits <= width), widest)
        picojoules += cost.macs_all * PJ_PER_MAC[width]
    return picojoules / 1e12


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> int:
    return int(path.read_text())
