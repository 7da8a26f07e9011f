"""The GPUs of the planner, their peaks for MFU, and the sources of these figures.

The figures are in ``gpus.yaml``; another file of the same form can add GPUs or change keys. Peaks
are dense product rates without sparsity. The efficiency is the share of the half-precision peak
that forward and backward pass reach on real tokens. It was measured for this code on an H100. For a
GPU without its own share, it is derived from that one:

```text
share = share of the H100 / (p + m * (peak / H100's peak) * (H100's bandwidth / bandwidth))
```

Here p is the part of the H100's time in products and attention, and m the part that moves memory.
The formula gives 46 and 39% for the A100, where NVIDIA's DeepLearningExamples reached 45 and 38%
on real tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bertds.cost_model.gpu_file import DEFAULTS, FILE, check_gpu, read_gpus
from bertds.display.words import count
from bertds.errors import ConfigError
from bertds.system.memory import cpu_memory_total
from bertds.system.processes import usable_cores

MEASURED_ON = "h100"
MEMORY_PART = {128: 0.29, 512: 0.23}
"""Part of the H100's kernel time that moves memory: 59 of 205 ms at 128 tokens, 30 of 133 ms at 512
(BERT-large with fused layers, measured with torch.profiler)."""
VARIANTS = {"ti", "super", "laptop", "mobile", "max", "d", "mig", "nvl"}
"""Words in the driver's name of a GPU that mean another peak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One kind of device, and the node that usually contains it."""

    name: str
    """The name for ``--gpu``."""
    peak_half: float
    """bf16 or fp16 matrix operations per second."""
    peak_full: float
    """The same in float32 (TF32 where the device has it)."""
    memory_gib: float
    """Memory of one device, as its driver reports it."""
    memory_bandwidth: float
    """Bytes per second between the device and its memory."""
    link_bandwidth: float
    """Bytes per second, device and direction inside a node (NVLink; for a CPU, shared memory)."""
    network_bandwidth: float
    """Bytes per second and direction between a node and the others."""
    watts: float
    """Power of one device under load, with its share of the node (CPU, network, fans)."""
    efficiency_128: float
    """Share of the peak reached on rows of 128 tokens."""
    efficiency_512: float
    """The same for rows of 512 tokens."""
    efficiency_kind: str
    """``measured``, ``published``, ``assumed`` or ``derived``."""
    efficiency_source: str
    """The source of these shares."""
    dollars_per_hour: float
    """Price of one device and hour; ``--price`` overrides it."""
    devices_per_node: int = 8
    """Number of devices in a node without ``--gpus``."""
    driver: tuple[str, ...] = ()
    """Lower-case words in the name that the driver reports."""
    source: str
    """The source of the other figures."""

    def peak(self, precision: str) -> float:
        """Return the peak in a precision of the DeepSpeed JSON, in operations per second."""
        return self.peak_full if precision == "fp32" else self.peak_half


def table(extra: Path | None = None) -> dict[str, Hardware]:
    """Return the known GPUs by name: those of the package, then those of a file of the user.

    Args:
        extra: a file like ``gpus.yaml``; None = the file that ``BERTDS_GPU_FILE`` names, if any.

    Raises:
        ConfigError: the file cannot be read, or an entry is wrong.
    """
    named = os.environ.get("BERTDS_GPU_FILE")
    return _table(extra or (Path(named) if named else None))


@cache
def _table(extra: Path | None) -> dict[str, Hardware]:
    rows = read_gpus(FILE)
    if extra is not None:
        for name, values in read_gpus(extra).items():
            rows[name] = {**rows.get(name, {}), **values}
    for name, values in rows.items():
        check_gpu(extra or FILE, name, values)
    return {name: _hardware(name, values, rows[MEASURED_ON]) for name, values in rows.items()}


def _hardware(name: str, row: Mapping[str, Any], reference: Mapping[str, Any]) -> Hardware:
    """Return one entry of the file in SI units, with an efficiency."""
    values = {**DEFAULTS, **row}
    share = values.get("efficiency")
    kind = values.get("efficiency_kind", "assumed")
    source = values.get("efficiency_source", "no source given")
    if share is None:
        share = {length: _derive(length, values, reference) for length in MEMORY_PART}
        kind = "derived"
        source = f"from the {MEASURED_ON.upper()}'s by peak and memory bandwidth"
    return Hardware(
        name=name,
        peak_half=values["half_tflops"] * 1e12,
        peak_full=values.get("full_tflops", values["half_tflops"] / 2) * 1e12,
        memory_gib=float(values["memory_gib"]),
        memory_bandwidth=values["memory_tb_s"] * 1e12,
        link_bandwidth=values["link_gb_s"] * 1e9,
        network_bandwidth=values["network_gb_s"] * 1e9,
        watts=float(values["watts"]),
        efficiency_128=float(share[128]),
        efficiency_512=float(share[512]),
        efficiency_kind=kind,
        efficiency_source=source,
        dollars_per_hour=float(values["dollars_per_hour"]),
        devices_per_node=int(values["devices_per_node"]),
        driver=tuple(word.lower() for word in values["driver"]),
        source=values["source"],
    )


def _derive(length: int, row: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Return the share of the peak by the formula in the module's docstring."""
    memory = MEMORY_PART[length]
    slower = row["half_tflops"] / reference["half_tflops"]
    slower *= reference["memory_tb_s"] / row["memory_tb_s"]
    return round(reference["efficiency"][length] / (1.0 - memory + memory * slower), 3)


def cpu() -> Hardware:
    """Return this machine's CPU as one device; its speed is a guess until calibrated."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    memory = cpu_memory_total() / 2**30
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
        efficiency_kind="assumed",
        efficiency_source="an estimate; calibrate with a run on this machine",
        dollars_per_hour=threads * 0.05,
        devices_per_node=1,
        source=f"guess: {count(threads, 'thread')} x 64 operations per cycle x 2.5 GHz",
    )


def find(name: str, extra: Path | None = None) -> Hardware:
    """Return a device by its name.

    Args:
        name: ``cpu``, or a name in the table.
        extra: see :func:`table`.

    Raises:
        ConfigError: there is no such name, or the file is wrong.
    """
    if name == "cpu":
        return cpu()
    known = table(extra)
    if name not in known:
        raise ConfigError(
            f"--gpu {name}: choose one of {', '.join([*known, 'cpu'])}, or describe it in a file "
            "(--gpu-file)"
        )
    return known[name]


def kind_of(device_name: str) -> Hardware | None:
    """Return the device that a driver's name denotes, or None if it is not in the table.

    All words of the entry must be in the name; of several entries, the one with the most words is
    chosen. If the name has a word of another variant (``Ti``, ``Laptop``, ``MIG``) that the entry
    lacks, it does not match.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    matches = [
        item
        for item in table().values()
        if item.driver and words >= set(item.driver) and not words & VARIANTS - set(item.driver)
    ]
    return max(matches, key=lambda item: len(item.driver), default=None)


def peak_of(device_name: str, precision: str) -> float | None:
    """Return the peak of a device by its driver's name, in operations per second, or None."""
    found = kind_of(device_name)
    return None if found is None else found.peak(precision)


def device_peak(device_type: str, precision: str) -> float | None:
    """Return the peak of this process's device; None on a CPU, whose peak is not known."""
    if device_type != "cuda":
        return None
    import torch

    return peak_of(torch.cuda.get_device_name(), precision)
