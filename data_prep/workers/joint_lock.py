"""The lock of an output folder that several tasks fill together, on one or more hosts.

```text
OUT/.lock                    names the group and its session
OUT/.tasks/member-K.json     one per task: host, process, Slurm job; touched while it lives
OUT/.tasks/SESSION/          claims and results of the tasks of this session
```

A group is all tasks of one preparation: same settings, same sources, same number of tasks. It holds
the folder while one of its members lives; any other process is refused. A session begins when the
first member finds no living one, and ends when the last member leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from bertds.errors import BertdsError, InUseError
from bertds.system.atomic_files import explain_os_error, temporary_name, write_json
from bertds.system.fault_points import reached
from bertds.system.folder_lock import (
    MEMBER_FILES,
    STALE_SECONDS,
    FolderLock,
    create_lock,
    in_use,
    living_holder,
    parse_lock,
    remove_dead_candidates,
    this_process,
)
from bertds.system.json_fields import parse_json

TASKS_FOLDER = ".tasks"
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 120.0


class JointLock(FolderLock):
    """Membership of one task in the group that fills a folder. A context manager."""

    def __init__(self, folder: Path, group: str, index: int, count: int) -> None:
        super().__init__(
            folder, f"preparation by {count} tasks", _STALE_SECONDS, beat_seconds=_BEAT_SECONDS
        )
        self.folder, self.group, self.index, self.count = Path(folder), group, index, count
        self.tasks = self.folder / TASKS_FOLDER
        self.member = self.tasks / f"member-{index}.json"
        self.token = uuid.uuid4().hex[:16]
        """Identifies this process: a restarted task has a different one."""
        self.session = ""

    @property
    def session_folder(self) -> Path:
        """The folder of this session's claims."""
        return self.tasks / self.session

    def acquire(self) -> JointLock:
        """Join the group, or create it.

        Raises:
            InUseError: another preparation fills the folder, or this task is already running.
        """
        try:
            twin = living_holder(self.member, self.stale_seconds)
            # A requeued element of a job array finds its own recent file, from another host.
            if twin is not None and (not twin["job"] or twin["job"] != this_process("")["job"]):
                raise InUseError(in_use(self.folder, twin))
            self._register(self.token)
            try:
                text = self._join()
                self.session_folder.mkdir(exist_ok=True)
            except BaseException:
                self.member.unlink(missing_ok=True)
                with suppress(OSError):
                    self.tasks.rmdir()  # unless others are in it
                raise
        except OSError as error:
            raise explain_os_error(error, self.tasks) from error
        self._hold(text)
        return self

    def _register(self, session: str) -> None:
        purpose = f"preparation, task {self.index} of {self.count}"
        self.session = session
        names = {"group": self.group, "session": session, "token": self.token}
        for _ in range(100):
            self.tasks.mkdir(exist_ok=True)
            try:
                write_json(self.member, {**this_process(purpose), **names})
                return
            except BertdsError as error:
                # The last task of the previous session has just removed the folder.
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        raise InUseError(
            f"{self.folder}: could not join the other tasks in {self.tasks}; run this task again"
        )

    def _join(self) -> str:
        """Agree on one session with the other tasks; return the text of its lock."""
        agreed = 0
        for _ in range(500):
            text = self._read()
            lock = parse_lock(text)
            if text and lock.get("group") == self.group and lock.get("session") == self.session:
                # Read twice: a lock that was removed by mistake (see there) returns in between.
                agreed += 1
                if agreed == 2:
                    return text
                time.sleep(0.02)
                continue
            agreed = 0
            # No lock: found a session. A lock of a living session: join it. Otherwise remove a dead
            # one.
            if text == "":
                self._register(self.token)
                names = {"group": self.group, "session": self.token}
                create_lock(self.path, json.dumps({**this_process(self.purpose), **names}))
            elif lock.get("group") == self.group and self._is_session_alive(lock["session"]):
                self._register(lock["session"])
            else:
                self._refuse_if_held(lock)
                self._remove_stale_lock(text)
        raise InUseError(f"{self.folder}: could not take the lock {self.path}")

    def _is_session_alive(self, session: str) -> bool:
        return any(m["session"] == session for m in self._others())

    def _others(self) -> list[dict[str, Any]]:
        others = []
        # Use the file server's time of touching this file, because its clock may differ from ours.
        with suppress(OSError):
            os.utime(self.member)
        now = self.member.stat().st_mtime if self.member.exists() else None
        for path in self.folder.glob(MEMBER_FILES):
            member = living_holder(path, self.stale_seconds, now) if path != self.member else None
            if member is not None:
                others.append(member)
        return others

    def _refuse_if_held(self, lock: dict[str, Any]) -> None:
        if not lock.get("group"):
            holder = living_holder(self.path, STALE_SECONDS)
        elif lock["group"] != self.group:
            # Members of this group that are about to join are harmless.
            holder = next((m for m in self._others() if m["group"] == lock["group"]), None)
        else:
            holder = None
        if holder is not None:
            raise InUseError(in_use(self.folder, holder))

    def refresh(self) -> None:
        """Show other hosts that this task, and so the group, still lives."""
        for path in (self.member, self.path):
            with suppress(OSError):
                os.utime(path)

    def release(self) -> None:
        """Leave the group; the last member of a session removes its files."""
        if not self._held:
            return
        self._held = False
        self.ended.set()
        with suppress(OSError):
            if parse_json(self.member.read_text(encoding="utf-8"))["token"] == self.token:
                self.member.unlink()
            if self._others():
                return
            reached("tasks.leave")
            remove_dead_candidates(self.path.parent, self.stale_seconds)
            self._remove_own_lock()
            self._remove_traces()

    def _remove_traces(self) -> None:
        """Remove the files of dead tasks and finished sessions.

        A task that joins at this moment keeps its files: it creates the folder of its session after
        it has registered. It cannot be in this task's session: it registers before it looks for a
        living member, and no other was registered when this task left.
        """
        sessions = [path for path in self.tasks.iterdir() if path.is_dir()]
        living = {member["session"] for member in self._others()}
        for session in sessions:
            if session.name not in living:
                shutil.rmtree(session, ignore_errors=True)
        for path in self.folder.glob(MEMBER_FILES):
            if living_holder(path, self.stale_seconds) is None:
                path.unlink(missing_ok=True)
        remove_dead_candidates(self.tasks, self.stale_seconds)
        self.tasks.rmdir()  # fails if other tasks are in it


class Claims:
    """The claims and results of the tasks of a session.

    A claim is a hint that keeps two tasks from doing the same work, not a guarantee: if both do it,
    they write the same bytes. So a claim of a task that seems dead can simply be taken over.
    """

    def __init__(self, lock: JointLock, patience_seconds: float = 60.0) -> None:
        self.lock, self.folder = lock, lock.session_folder
        self.patience_seconds = patience_seconds
        self._seen: dict[str, tuple[int, float]] = {}

    def names(self) -> set[str]:
        """Return the names of all files of the session, as a quick overview."""
        try:
            return set(os.listdir(self.folder))
        except FileNotFoundError as error:
            raise BertdsError(
                f"{self.folder}: the other tasks have ended in the meantime; run this task again"
            ) from error

    def take(self, name: str) -> bool:
        """Claim a piece of work. Returns False if a living task has claimed it."""
        # A hard link is created atomically, on network file systems too.
        claim = self.folder / f"{name}.claim"
        mine = temporary_name(claim)
        value = {"member": self.lock.member.name, "token": self.lock.token}
        mine.write_text(json.dumps(value), encoding="utf-8")
        try:
            os.link(mine, claim)
            return True
        except FileExistsError:
            if self._is_alive(claim):
                return False
            os.replace(mine, claim)
            return True
        finally:
            mine.unlink(missing_ok=True)

    def _is_alive(self, claim: Path) -> bool:
        try:
            owner = parse_json(claim.read_text(encoding="utf-8"))
            member = self.lock.tasks / owner["member"]
            found = parse_json(member.read_text(encoding="utf-8"))
            beat = member.stat().st_mtime_ns
        except (OSError, ValueError, KeyError):
            return False
        if found["token"] != owner["token"]:
            return False  # that task has been restarted
        if found["host"] == this_process("")["host"]:
            return living_holder(member, self.patience_seconds) is not None
        # On another host: alive while its file is touched, as measured by our own clock. The clocks
        # of the hosts and of the file server may differ.
        now = time.monotonic()
        before, since = self._seen.get(member.name, (0, now))
        if before != beat:
            since = now
        self._seen[member.name] = (beat, since)
        return now - since < self.patience_seconds

    def finish(self, name: str, value: object) -> None:
        """Store the result of a piece of work for all tasks."""
        write_json(self.folder / f"{name}.done", {"value": value})

    def value(self, name: str) -> Any:
        """Return the stored result of a finished piece of work."""
        found = parse_json((self.folder / f"{name}.done").read_text(encoding="utf-8"))
        return found["value"]
