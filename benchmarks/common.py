"""What every benchmark records: machine, versions, date and command. Also saves pictures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
PREPARATION_PACKAGES = ("numpy", "numba", "tokenizers", "sentencex", "h5py")
# Run by another interpreter.
_VERSIONS = """
import importlib.metadata, json, sys
found = importlib.metadata.distributions()
print(json.dumps({one.name: one.version for one in found if one.name in sys.argv[1:]}))
"""


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def versions_in(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that another interpreter has."""
    command = [python, "-c", _VERSIONS, *packages]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(found))


def host_facts(
    script: str, argv: list[str] | None, note: str = "", packages: Sequence[str] = PACKAGES
) -> dict[str, Any]:
    """Return what a result must carry so that others can judge and repeat it; needs no torch."""
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{script}", *arguments]),
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **versions_of(packages)},
        "note": note,
    }


def facts(script: str, argv: list[str] | None, note: str = "") -> dict[str, Any]:
    """Return :func:`host_facts`, and the device and threads that torch has."""
    import torch

    host = host_facts(script, argv, note)
    cuda = torch.cuda.is_available()
    if cuda:
        host["machine"] = torch.cuda.get_device_name()
    return {**host, "device": "cuda" if cuda else "cpu", "threads": torch.get_num_threads()}


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
    """Add what every benchmark takes for its result: a note and a JSON file."""
    parser.add_argument(
        "--note", default="", help="a remark for the result, such as 'shared machine'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")


def footer(result: dict[str, Any]) -> str:
    """Return the last lines of a table: machine and load, versions."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    where = f"{result['machine']}, {result['cores']} cores, load {result['load_average']}"
    return f"{where}\n{versions}"


def write_result(result: dict[str, Any], path: Path | None) -> None:
    """Write a result as JSON where one was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def draw(
    path: Path | None, paint: Callable[[Any], None], width: float = 8.0, height: float = 4.2
) -> None:
    """Save a picture that ``paint(figure)`` fills."""
    if path is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    paint(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
