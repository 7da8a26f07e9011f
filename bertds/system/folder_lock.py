"""A lock that lets only one process at a time write to a folder."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from bertds.errors import InUseError
from bertds.system.atomic_files import TEMPORARY_PREFIX, explain_os_error, temporary_name
from bertds.system.fault_points import reached
from bertds.system.json_fields import parse_json
from bertds.system.processes import start_time

MEMBER_FILES = ".tasks/member-*.json"
"""In a folder that several tasks fill together (data_prep/workers/joint_lock.py): one per task."""

_CANDIDATE = re.compile(r"(?:lock|dead-lock|member-\d+\.json)\.(?P<host>.+)\.(?P<pid>\d+)")
"""Temporary names of locks and members, from ``temporary_name``."""

STALE_SECONDS = 600.0
"""A lock of another host that has not been touched for this long is dead."""


def this_process(purpose: str) -> dict[str, Any]:
    """Return the contents of a lock of this process."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "purpose": purpose,
    }


def living_holder(
    path: Path, stale_seconds: float, now: float | None = None
) -> dict[str, Any] | None:
    """Return the contents of a lock file, or None if there is none or its holder is dead.

    Args:
        path: the file.
        stale_seconds: a holder on another host is dead if its file is older.
        now: the file server's time, if known; None = this host's.
    """
    try:
        holder = parse_lock(path.read_text(encoding="utf-8", errors="replace"))
        age = (time.time() if now is None else now) - path.stat().st_mtime
    except OSError:
        return None
    if not holder:
        return None
    # On this host the process id and start time decide; elsewhere only the age of the file.
    if holder.get("host") == socket.gethostname():
        pid = holder.get("pid")
        alive = isinstance(pid, int) and start_time(pid) == holder.get("start")
        return holder if alive else None
    return holder if age <= stale_seconds else None


def in_use(folder: Path, holder: dict[str, Any]) -> str:
    """Return the message that a folder is in use, with host, process and job of the holder."""
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    return (
        f"{folder}: in use by {holder.get('purpose')} (process {holder.get('pid')} on "
        f"{holder.get('host')}{job}); wait until it has finished, or choose another folder"
    )


def remove_dead_candidates(folder: Path, stale_seconds: float) -> None:
    """Remove the temporary files of processes that were killed while taking or removing a lock.

    Those of living processes are kept: one of them may be taking the lock at this moment.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        candidate = _CANDIDATE.fullmatch(path.name.removeprefix(TEMPORARY_PREFIX))
        if candidate is None:
            continue
        with suppress(OSError):
            if candidate["host"] == socket.gethostname():
                dead = start_time(int(candidate["pid"])) == ""
            else:
                dead = time.time() - path.stat().st_mtime > stale_seconds
            if dead:
                path.unlink()


class FolderLock:
    """Keeps two processes from writing to one folder: a ``.lock`` file with host, pid and job.

    A lock whose owner no longer runs on this host is taken over. A lock of another host is
    respected while its file is fresh (the owner touches it in the background), and taken over once
    it is ``stale_seconds`` old. The lock of a group of tasks (data_prep/workers/joint_lock.py) is
    held while one of them lives.

    An owner that was wrongly considered dead (a process on a lost node, or one that was suspended
    for long) learns this from :meth:`check`.

    Args:
        folder: must exist.
        purpose: what the owner does, for the message to other processes.
        stale_seconds: a lock of another host that has not been touched for this long is dead.
        beat_seconds: time between two touches; 0 = 10% of ``stale_seconds``.
    """

    def __init__(
        self,
        folder: Path,
        purpose: str,
        stale_seconds: float = STALE_SECONDS,
        beat_seconds: float = 0.0,
    ) -> None:
        self.path = Path(folder) / ".lock"
        self.purpose = purpose
        self.stale_seconds = stale_seconds
        self.beat_seconds = beat_seconds or stale_seconds / 10
        self.ended = threading.Event()
        """Set when the background thread must stop touching the lock."""
        self._held = False
        self._text = ""
        """The contents of the lock while this process holds it."""
        self._checked = 0.0

    def acquire(self) -> FolderLock:
        """Take the lock.

        Raises:
            InUseError: another living process holds it; the message names its host, pid and job.
        """
        text = json.dumps(this_process(self.purpose))
        try:
            created = False
            for _ in range(100):
                created |= create_lock(self.path, text)
                found = self._read()
                if created and found == text:
                    self._hold(text)
                    remove_dead_candidates(self.path.parent, self.stale_seconds)
                    return self
                owner = self._living_owner()
                if owner is not None:
                    raise InUseError(owner)
                self._remove_stale_lock(found)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        raise InUseError(f"{self.path.parent}: could not take the lock {self.path}")

    def _remove_stale_lock(self, text: str | None) -> None:
        """Remove the lock with these contents, whose owner is dead, but no other lock."""
        # One process at a time: two that see the same dead owner would otherwise race, and the
        # slower one could remove the lock that the faster one has taken in the meantime.
        turn = self.path.with_name(f"{TEMPORARY_PREFIX}lock-removal")
        if not create_lock(turn, json.dumps(this_process(self.purpose))):
            other = _text_of(turn)
            if other and living_holder(turn, self.stale_seconds) is None:
                _remove(turn, other)  # it was killed within these few lines
            else:
                time.sleep(0.01)
            return
        try:
            if self._read() == text:
                reached("lock.remove")
                _remove(self.path, text)
        finally:
            turn.unlink(missing_ok=True)

    def _hold(self, text: str) -> None:
        """Record that this process holds the lock, and start to touch it."""
        self._text = text
        self._held = True
        self.ended.clear()
        threading.Thread(target=self._stay_fresh, daemon=True).start()

    def _living_owner(self) -> str | None:
        for path in self._holders():
            owner = living_holder(path, self.stale_seconds)
            if owner is not None:
                return in_use(self.path.parent, owner)
        return None

    def _holders(self) -> list[Path]:
        """Return the files that show who holds the lock: the lock, or all members of a group."""
        group = parse_lock(self._read()).get("group")
        return sorted(self.path.parent.glob(MEMBER_FILES)) if group else [self.path]

    def refresh(self) -> None:
        """Touch the lock, to show other hosts that the owner still lives."""
        if self._held:
            os.utime(self.path)

    def _stay_fresh(self) -> None:
        while not self.ended.wait(self.beat_seconds):
            with suppress(OSError):
                self.refresh()

    def check(self, *, at_most_every: float = 0.0) -> None:
        """Check that no other process has taken over the folder.

        Does nothing if the lock is not held.

        Args:
            at_most_every: seconds; a check sooner after the last one does not access the file.

        Raises:
            InUseError: the lock is gone or belongs to another process, so it is no longer held.
        """
        now = time.monotonic()
        if not self._held or now - self._checked < at_most_every:
            return
        self._checked = now
        found = self._read()
        if found is None or found == self._text:
            return
        self._held = False
        self.ended.set()
        owner = parse_lock(found)
        taken = f"{self.path}: removed by another process, which may write to the folder now"
        if owner:
            taken = in_use(self.path.parent, owner)
        raise InUseError(f"{taken}. This process stops without saving")

    def _read(self) -> str | None:
        """Return the lock's contents; "" if there is none, None if the file system fails."""
        return _text_of(self.path)

    def release(self) -> None:
        """Release the lock. Does nothing if this process does not hold it."""
        if self._held:
            self._held = False
            self.ended.set()
            self._remove_own_lock()

    def _remove_own_lock(self) -> None:
        if self._read() == self._text:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def create_lock(path: Path, text: str) -> bool:
    """Publish a lock; return False if there already is one."""
    # A hard link to a complete file: the lock never exists half-written.
    candidate = temporary_name(path.with_name("lock"))
    candidate.unlink(missing_ok=True)
    candidate.write_text(text, encoding="utf-8")
    try:
        os.link(candidate, path)
    except FileExistsError:
        return False
    finally:
        candidate.unlink(missing_ok=True)
    return True


def _remove(path: Path, text: str | None) -> None:
    """Remove a lock if these are its contents."""
    stale = temporary_name(path.with_name("dead-lock"))
    try:
        os.rename(path, stale)
    except FileNotFoundError:
        return
    if _text_of(stale) != text:
        # Its owner was not dead and has released it, and another one has taken it: restore that.
        with suppress(FileExistsError):
            os.link(stale, path)
    stale.unlink(missing_ok=True)


def parse_lock(text: str | None) -> dict[str, Any]:
    """Return the contents of a lock file; {} if they are not valid."""
    try:
        found = parse_json(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:
        return None
