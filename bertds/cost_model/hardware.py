"""Machines that a plan can be made for, and where their numbers come from.

Peaks are dense matrix rates without sparsity. Efficiencies are shares of the half-precision peak
that published BERT pre-training reached on real tokens; ``--calibrate RUN`` replaces them by what
a run of one's own measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bertds.cost_model.flops import PEAKS
from bertds.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One kind of device, and the node that it usually sits in."""

    name: str
    """As given to ``--gpu``."""
    peak_half: float
    """bf16 or fp16 matrix operations per second."""
    peak_full: float
    """The same in float32 (TF32 where the device has it)."""
    memory_gib: float
    """Memory of one device, as its driver reports it."""
    memory_bandwidth: float
    """Bytes per second between the device and its memory."""
    link_bandwidth: float
    """Bytes per second and device and direction inside a node (NVLink; on CPU shared memory)."""
    network_bandwidth: float
    """Bytes per second and direction that a node has to the others."""
    watts: float
    """Of one device with its share of the node (CPU, network, fans), under load."""
    efficiency_128: float
    """Share of the peak reached on rows of 128 tokens."""
    efficiency_512: float
    """The same on rows of 512."""
    dollars_per_hour: float
    """List price of one device and hour, to be overridden by ``--price``."""
    source: str
    """Where the numbers are from."""


def _gpu(name: str, **values: float | str) -> Hardware:
    peaks = PEAKS[name.split("_")[0]]
    return Hardware(name=name, peak_half=peaks["half"], peak_full=peaks["fp32"], **values)  # type: ignore[arg-type]


TABLE = {
    item.name: item
    for item in (
        _gpu(
            "v100", memory_gib=31.7, memory_bandwidth=0.9e12, link_bandwidth=150e9,
            network_bandwidth=100e9, watts=625.0, efficiency_128=0.43, efficiency_512=0.29,
            dollars_per_hour=2.5,
            source="NVIDIA V100 SXM3 32 GB data sheet; DGX-2: 16 GPUs, 10 kW, 8 x 100 Gb/s; "
            "efficiency: DLE's 224 and 36 sequences/s per GPU",
        ),
        _gpu(
            "a100", memory_gib=79.2, memory_bandwidth=2.0e12, link_bandwidth=300e9,
            network_bandwidth=200e9, watts=812.0, efficiency_128=0.45, efficiency_512=0.38,
            dollars_per_hour=2.0,
            source="NVIDIA A100 SXM 80 GB data sheet; DGX A100: 8 GPUs, 6.5 kW, 8 x 200 Gb/s; "
            "efficiency: DLE's 580 and 210 (binned) sequences/s per GPU, real tokens",
        ),
        _gpu(
            "h100", memory_gib=79.1, memory_bandwidth=3.35e12, link_bandwidth=450e9,
            network_bandwidth=400e9, watts=1275.0, efficiency_128=0.40, efficiency_512=0.40,
            dollars_per_hour=3.0,
            source="NVIDIA H100 SXM data sheet; DGX H100: 8 GPUs, 10.2 kW, 8 x 400 Gb/s; "
            "efficiency: assumed somewhat below MLPerf's H200",
        ),
        _gpu(
            "h200", memory_gib=139.8, memory_bandwidth=4.8e12, link_bandwidth=450e9,
            network_bandwidth=400e9, watts=1275.0, efficiency_128=0.42, efficiency_512=0.42,
            dollars_per_hour=3.5,
            source="NVIDIA H200 SXM data sheet; DGX H200: 8 GPUs, 10.2 kW, 8 x 400 Gb/s; "
            "efficiency: below MLPerf v4's 49-53 %, which uses FP8 and CUDA graphs",
        ),
        _gpu(
            "b200", memory_gib=179.0, memory_bandwidth=8.0e12, link_bandwidth=900e9,
            network_bandwidth=400e9, watts=1787.0, efficiency_128=0.33, efficiency_512=0.35,
            dollars_per_hour=5.0,
            source="NVIDIA B200 SXM data sheet; DGX B200: 8 GPUs, 14.3 kW, 8 x 400 Gb/s; "
            "efficiency: assumed, no published BERT run",
        ),
    )
}  # fmt: skip


def cpu() -> Hardware:
    """Return this machine's CPU as one device; its speed is a guess until calibrated."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(
        name="cpu",
        peak_half=threads * 160e9,
        peak_full=threads * 160e9,
        memory_gib=round(memory, 1),
        memory_bandwidth=threads * 10e9,
        link_bandwidth=2e9,
        network_bandwidth=1.25e9,
        watts=threads * 8.0,
        efficiency_128=0.25,
        efficiency_512=0.25,
        dollars_per_hour=threads * 0.05,
        source=f"guess: {threads} threads x 64 operations per cycle x 2.5 GHz at 25 %; "
        "calibrate with a run of this machine",
    )


def find(name: str) -> Hardware:
    """Return a device of the table.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "cpu":
        return cpu()
    if name not in TABLE:
        raise ConfigError(f"--gpu {name}: choose one of {', '.join([*TABLE, 'cpu'])}")
    return TABLE[name]
