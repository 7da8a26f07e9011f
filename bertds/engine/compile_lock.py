"""Keeps a lock of a killed process from blocking the compilation of DeepSpeed's operators.

torch compiles an extension under a lock file. If the file exists, it waits without limit and
without a message, also if the process that created the file was killed during the compilation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils import cpp_extension

from bertds.system.early_stop import on_early_stop
from bertds.system.logs import log

STALE_SECONDS = 1800.0
"""No operator takes this long to compile, even on a slow machine. Nothing else shows whether the
process that created the lock still lives, since it may be on another host."""


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Compile an extension within the ``with`` block.

    Waits, with a message, while another process compiles it. Removes the lock of a process that was
    killed, and this process's lock if a signal ends it at once.

    Args:
        name: of the extension.
    """
    lock = Path(cpp_extension._get_build_directory(name, False)) / "lock"
    on_early_stop(lambda *_: release(lock))
    told = False
    with suppress(FileNotFoundError):
        while True:
            age = time.time() - lock.stat().st_mtime
            if age > STALE_SECONDS:
                log.warning("%s: removed, since the process that compiled %s has ended", lock, name)
                lock.unlink()
            elif not told:
                log.warning(
                    "waiting for another process that compiles %s, at most %.0f min; if none does, "
                    "remove %s",
                    name,
                    (STALE_SECONDS - age) / 60,
                    lock,
                )
                told = True
            time.sleep(0.1)
    yield


def release(lock: Path) -> None:
    """Remove a lock if this process created it, which torch keeps open meanwhile."""
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}") == os.path.realpath(lock):
                lock.unlink()
                return
