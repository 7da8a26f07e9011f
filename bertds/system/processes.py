"""Facts about processes, from psutil."""

from __future__ import annotations

import os
import sys

import psutil

from bertds.errors import ConfigError


def start_time(pid: int) -> str:
    """Return the start time of a process of this host, or "" if it is gone.

    The unit is hundredths of a second since boot. Unlike the time of day, this does not change when
    the clock is set, so that together with the process id it identifies the process.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return str(round(100 * (process.create_time() - psutil.boot_time())))
    except (psutil.Error, ValueError):  # a negative id raises a ValueError
        return ""


def processor_time(pid: int) -> float | None:
    """Return the seconds of CPU time that all threads of a process have used; None if unknown."""
    try:
        used = psutil.Process(pid).cpu_times()
    except (psutil.Error, ValueError):
        return None
    return used.user + used.system


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def require_linux() -> None:
    """Refuse a system on which training was never run.

    Raises:
        ConfigError: this is macOS, Windows or another system.
    """
    if sys.platform != "linux":
        name = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        raise ConfigError(
            f"training needs Linux, this is {name}; use a Linux container or virtual machine (on "
            "Windows WSL 2)"
        )
