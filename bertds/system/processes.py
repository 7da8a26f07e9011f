"""What the system says of a process."""

from __future__ import annotations

import os
from pathlib import Path


def start_time(pid: int) -> str:
    """Return when a process of this host started (clock ticks since boot), or "" if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rsplit(")", 1)[1].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        if not Path("/proc/self").exists():  # not Linux: fall back to "does the pid exist"
            try:
                os.kill(pid, 0)
                return "alive"
            except OSError:
                return ""
        return ""


def processor_time(pid: int) -> int | None:
    """Return the clock ticks that all threads of a process have used; None if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The program's name, in brackets, may hold anything; the numbers stand after it.
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else None
