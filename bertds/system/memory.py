"""The peak of the memory that this process itself has allocated, without pages of files.

Libraries, mapped shards and the like are shared by all processes of a machine, and the kernel drops
them when memory is needed. On a busy machine the resident size of the same run was smaller by
150 MiB. Memory that the process has allocated cannot be dropped, and is what runs out.

Linux records the peak of both together (VmHWM). It is reset at each call, so that the pages of
files can be subtracted while their number is known. psutil has neither, so this reads /proc.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil


class OwnMemory:
    """Tracks a process's peak.

    Args:
        folder: of the process in /proc.
    """

    def __init__(self, folder: Path = Path("/proc/self")) -> None:
        self._folder = folder
        self._files = 0
        self._peak = 0

    def look(self) -> int:
        """Return the peak so far, in bytes. Fast enough for every log line."""
        try:
            text = (self._folder / "status").read_text(encoding="ascii")
            lines = [line.split() for line in text.splitlines() if line[:3] in ("VmH", "Rss")]
            sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
            files, together = sizes["RssFile"], sizes["VmHWM"]
        except (OSError, KeyError, ValueError, IndexError):  # not Linux
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        # If pages of files were dropped in between, the peak may be from before or after that. The
        # lower value is certain.
        self._peak = max(
            self._peak,
            together - max(files, self._files),
            sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0),
        )
        self._files = files
        with suppress(OSError):  # without permission, the next peak is that of the whole run
            (self._folder / "clear_refs").write_text("5", encoding="ascii")
        return self._peak


OWN = OwnMemory()
"""The memory of this process."""


def peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: GPU memory, or its own on a CPU.

    Not ``ru_maxrss``, which includes the memory of the process that started this one.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(OWN.look() / 2**30, 3)


def cpu_memory_available() -> float:
    """Return the bytes available without swapping, within the limits of control groups."""
    free = float(psutil.virtual_memory().available)
    return min(free, *(_room(group) for group in _control_groups()))


def _control_groups(process: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Return the folders of the control groups that limit this process: its own and its parents."""
    root = Path("/sys/fs/cgroup")
    groups = [root]  # in a container, its own group is the root
    with suppress(OSError, ValueError):
        for line in process.read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # version 2, or version 1 with its own tree
                top = root / "memory" if controllers else root
                inner = top / path.lstrip("/")
                groups += [inner, *(up for up in inner.parents if up.is_relative_to(top))]
    return groups


def _room(group: Path) -> float:
    """Return the bytes below a control group's limit, counting pages of files as free."""
    for limit, used, pages in (
        ("memory.max", "memory.current", ("active_file", "inactive_file")),
        (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("total_active_file", "total_inactive_file"),
        ),
    ):
        try:
            most = (group / limit).read_text(encoding="ascii").strip()
            if most == "max":
                return float("inf")
            held = float((group / used).read_text(encoding="ascii"))
            stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
            sizes = {words[0]: float(words[1]) for words in map(str.split, stat)}
            return float(most) - held + sum(sizes.get(name, 0.0) for name in pages)
        except (OSError, ValueError, IndexError):
            continue
    return float("inf")


def cpu_memory_total() -> float:
    """Return the machine's memory in bytes."""
    return float(psutil.virtual_memory().total)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, including pages of files."""
    return int(psutil.Process().memory_info().rss)
