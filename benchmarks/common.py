"""What every benchmark says beside its numbers: machine, versions, date, command; and pictures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def facts(script: str, argv: list[str] | None, note: str = "") -> dict[str, Any]:
    """Return what a result must carry so that others can judge and repeat it."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{script}", *(argv or sys.argv[1:])]),
        "machine": torch.cuda.get_device_name() if cuda else cpu_name(),
        "device": "cuda" if cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": versions,
        "note": note,
    }


def matrix_rate(
    dtype: Any,
    device: str = "cpu",
    seconds: float = 1.0,
    size: int = 1024,
    *,
    typical: bool = False,
) -> float:
    """Return operations per second of this machine's matrix product: the best of its repeats.

    With ``typical`` the mean of them: what processes reach that share the machine.

    A CPU has no data-sheet figure that its cores could reach in every power state, so the MFU of
    a CPU is counted against this.
    """
    import torch

    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, 3 * size, device=device).to(dtype)
    left @ right
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2.0 * size * size * 3 * size / (statistics.mean(times) if typical else min(times))


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of theirs / ours over neighbours in time: a busy moment hits both."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark takes for its result: a note, a JSON file, a picture."""
    parser.add_argument("--note", default="", help="such as: machine shared with other work")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--picture", type=Path, help="also draw it (PNG, SVG)")


def write_result(result: dict[str, Any], path: Path | None) -> None:
    """Write a result as JSON where one was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def draw(path: Path | None, paint: Callable[[Any], None], width: float = 8.0) -> None:
    """Save a picture that ``paint(figure)`` fills."""
    if path is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, 4.2), layout="constrained")
    paint(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
