"""The roofline: how fast a device could be, given what is computed and what is moved.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .stopwatch import Clock, wall_clock

_MATRIX = {"cpu": (512, 1024, 1536), "cuda": (2048, 4096, 8192)}  # sides of square products
_BUFFER = 2**27  # bytes: larger than last-level caches
_CACHED = 2**17  # bytes: two of these fit into a core's own cache


@dataclass(frozen=True)
class Device:
    """What bounds a device: its arithmetic and its main memory.

    Attributes:
        name: what to call it.
        flops: operations a second at best, two for a MAC; dense, without sparsity.
        bandwidth: bytes a second between memory and processor.
        bits: width of the numbers at which `flops` holds.
        source: where the two figures are from.
        measured: whether they were measured here; otherwise they are estimates from data sheets.
        cache_bandwidth: bytes a second from a core's own cache, where that was measured.
    """

    name: str
    flops: float
    bandwidth: float
    bits: int = 32
    source: str = ""
    measured: bool = False
    cache_bandwidth: float | None = None

    @property
    def ridge(self) -> float:
        """Intensity in FLOPs per byte from which on arithmetic is the limit."""
        return self.flops / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """FLOPs a second that work of this intensity (FLOPs per byte) can reach."""
        return min(self.flops, intensity * self.bandwidth)

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so many FLOPs and so many bytes to and from memory."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "this machine",
    seconds: float = 0.3,
) -> Device:
    """Measure peak and bandwidth with torch's own kernels and its number of threads.

    The peak is the best rate of square matrix products and of a 3×3 convolution; the bandwidth the
    best of copying and of adding, over buffers larger than the caches (each byte read or written
    counts once). The best of many runs, since a roof is what nothing exceeds.

    Args:
        seconds: for each of the six micro-benchmarks.

    Raises:
        ValueError: the time is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds}: must be above 0")
    place = torch.device(device)
    clock = wall_clock(place)
    with torch.no_grad():
        flops = max(best_rate(run, work, seconds, clock) for run, work in _arithmetic(place, dtype))
        bandwidth = max(
            best_rate(run, work, seconds, clock) for run, work in _streams(place, _BUFFER)
        )
        cached = None
        if place.type == "cpu":
            run, work = _streams(place, _CACHED)[0]
            cached = best_rate(lambda: [run() for _ in range(50)], 50 * work, seconds, clock)
    bits = 8 * torch.empty((), dtype=dtype).element_size()
    source = "micro-benchmarks"
    if place.type == "cpu":
        source += f", torch threads: {torch.get_num_threads()}"
    return Device(name, flops, bandwidth, bits, source, True, cached)


def best_rate(run: Callable[[], object], work: float, seconds: float, clock: Clock) -> float:
    """`work` of one run over the time of the fastest run, of those that fit into `seconds`.

    At least three runs, after one to warm up.
    """
    run()
    begin, best, runs = clock(), float("inf"), 0
    while runs < 3 or clock() - begin < seconds:
        start = clock()
        run()
        best = min(best, clock() - start)
        runs += 1
    return work / best


def _arithmetic(
    device: torch.device, dtype: torch.dtype
) -> list[tuple[Callable[[], object], float]]:
    """(what to run, FLOPs of one run)."""
    found: list[tuple[Callable[[], object], float]] = []
    for side in _MATRIX.get(device.type, _MATRIX["cpu"]):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found.append((lambda a=a, b=b: a @ b, 2.0 * side**3))  # type: ignore[misc]
    channels, size = 256, 32
    x = torch.randn(1, channels, size, size, device=device).to(dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    work = 2.0 * 9 * channels**2 * size**2
    found.append((lambda: F.conv2d(x, weight, padding=1), work))
    return found


def _streams(device: torch.device, size: int) -> list[tuple[Callable[[], object], float]]:
    """(what to run, bytes read and written by one run) over buffers of `size` bytes."""
    a, b = (torch.ones(size // 4, device=device) for _ in range(2))
    return [(lambda: b.copy_(a), 2.0 * size), (lambda: torch.add(a, b, out=b), 3.0 * size)]
