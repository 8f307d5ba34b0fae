"""Devices by their public data sheets: estimates, to see where a model would stand on them.

Peaks are what the vendor or the sheet states for dense work; none is reached by a whole network.
Where a vendor says nothing about a figure, the source says how it was derived.
"""

from __future__ import annotations

from .roofline import Device

DEVICES: tuple[Device, ...] = (
    Device(
        "phone NPU (Apple A17 Pro, 8 bit)",
        flops=35e12,
        bandwidth=51.2e9,
        bits=8,
        source="Apple's announcement of September 2023: 35 trillion operations a second (the "
        "width is not stated; taken as 8 bit); memory derived: LPDDR5-6400, 64 bit wide",
    ),
    Device(
        "phone GPU (Adreno 750, 16 bit)",
        flops=5.5e12,
        bandwidth=76.8e9,
        bits=16,
        source="arithmetic from third parties, Qualcomm states none: 1536 lanes × 2 × 0.9 GHz, "
        "twice that at 16 bit; memory: Snapdragon 8 Gen 3 brief, LPDDR5X at 4800 MHz, 64 bit wide",
    ),
    Device(
        "laptop NPU (Snapdragon X Elite, 8 bit)",
        flops=45e12,
        bandwidth=135e9,
        bits=8,
        source="Qualcomm's Snapdragon X Elite brief: 45 TOPS, LPDDR5X with 135 GB/s",
    ),
    Device(
        "board (Jetson Orin Nano 8 GB, 8 bit)",
        flops=20e12,
        bandwidth=68e9,
        bits=8,
        source="NVIDIA's data sheet: 20 TOPS dense at 8 bit, 68 GB/s",
    ),
    Device(
        "data centre GPU (A100 80 GB, 16 bit)",
        flops=312e12,
        bandwidth=2.039e12,
        bits=16,
        source="NVIDIA's A100 SXM data sheet: 312 TFLOPS dense at 16 bit, 2039 GB/s",
    ),
)
