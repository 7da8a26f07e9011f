"""Records the order in which files reach the disk: flushes, renames and removals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


class DiskOrder:
    """What was done with which path, in order: ``flush``, ``rename`` (its target) or ``remove``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        fsync, rename, replace, rmtree = os.fsync, os.rename, os.replace, shutil.rmtree

        def note(what: str, path: object) -> None:
            self.events.append((what, Path(str(path))))

        def noted_fsync(descriptor: int) -> None:
            note("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def noted_rename(source: object, target: object) -> None:
            rename(source, target)  # type: ignore[arg-type]
            note("rename", target)

        def noted_replace(source: object, target: object) -> None:
            replace(source, target)  # type: ignore[arg-type]
            note("rename", target)

        def noted_rmtree(path: object, ignore_errors: bool = False) -> None:
            if Path(str(path)).exists():
                note("remove", path)
            rmtree(path, ignore_errors)  # type: ignore[call-overload]

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "rename", noted_rename)
        monkeypatch.setattr(os, "replace", noted_replace)
        monkeypatch.setattr(shutil, "rmtree", noted_rmtree)

    def place(self, what: str, path: Path, after: int = 0) -> int:
        """Return the position of the first such event from a position on."""
        return self.events.index((what, path), after)

    def last(self, what: str, path: Path, before: int) -> int:
        """Return the position of the last such event before a position."""
        return max(n for n, event in enumerate(self.events[:before]) if event == (what, path))
