"""Copies of a run's checkpoints in a store (``checkpoint.copy_to``).

```text
URL/step_00000100/rank_00000.safetensors ... manifest.json   uploaded last, removed first
```

Rank 0 uploads in a thread while training continues. A copy without its manifest does not count: the
files of an interrupted upload are removed by a later one. On a machine without the checkpoint (or
with a damaged or older one), a start first fetches the newest intact copy into the run folder.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertds.checkpoint.find import step_folders, step_name, step_of
from bertds.checkpoint.format import CheckpointReader
from bertds.checkpoint.manifest import FILE as MANIFEST
from bertds.checkpoint.manifest import read_manifest
from bertds.errors import BertdsError, CheckpointError, DataError, StoreError
from bertds.system import storage
from bertds.system.atomic_files import sync_folder, write_text
from bertds.system.logs import log
from bertds.system.secrets import masked

_FILE = re.compile(r"(step_[0-9]{8,15})/([^/]+)")
AGAIN_SECONDS = 30.0
"""Time between two attempts to upload a checkpoint."""


def listed(url: str, seconds: float = storage.PATIENCE_SECONDS) -> dict[str, list[str]]:
    """Return the files of every step below a URL, newest step first, including incomplete ones.

    Raises:
        DataError, StoreError: the store refused the request, or did not answer in time.
    """
    steps: dict[str, list[str]] = {}
    # Other files below the URL are not ours.
    for name in storage.list_files(url, seconds):
        if (found := _FILE.fullmatch(name)) is not None:
            steps.setdefault(found[1], []).append(found[2])
    return dict(sorted(steps.items(), key=lambda one: step_of(one[0]), reverse=True))


class Copies:
    """Uploads checkpoints in a background thread, one after the other.

    Args:
        url: the folder that holds the copies.
        superfluous: returns, of the given steps (newest first), those that no rule keeps.
    """

    def __init__(self, url: str, superfluous: Callable[[list[int]], list[int]]) -> None:
        self.url = url
        self._superfluous = superfluous
        self._waiting: deque[Path] = deque()
        self._current: Path | None = None
        self._problem = ""
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, folder: Path) -> None:
        """Queue a published checkpoint for upload."""
        with self._changed:
            self._waiting.append(folder)
            if self._thread is None:
                # A daemon thread: the process must be able to exit even if a driver hangs.
                self._thread = threading.Thread(target=self._work, name="bertds-copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def catch_up(self, checkpoints: Path) -> None:
        """Upload the newest local checkpoint if an earlier process ended before it could."""
        folders = step_folders(checkpoints)
        if folders:
            self.add(folders[0])

    def release(self, folder: Path) -> bool:
        """Return whether a checkpoint may be removed, and take it from the queue if so."""
        with self._changed:
            if folder == self._current:
                return False
            if folder in self._waiting:
                self._waiting.remove(folder)
            return True

    def wait(self, seconds: float) -> None:
        """Wait until the queue is empty.

        Raises:
            StoreError: a checkpoint is not uploaded after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting or self._current is not None:
                if (left := deadline - time.monotonic()) <= 0 or self._stopped.is_set():
                    names = [folder.name for folder in (self._current, *self._waiting) if folder]
                    why = f" ({self._problem})" if self._problem else ""
                    raise StoreError(
                        f"{masked(self.url)}: {', '.join(names)} not uploaded yet{why}; the "
                        "checkpoint is in the run folder and will be uploaded at the next start"
                    )
                self._changed.wait(min(left, 1.0))

    def stop(self) -> None:
        """Stop after the current file."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(5.0)
                    continue  # look at _stopped again
                self._current = self._waiting.popleft()
                folder = self._current
            try:
                self._copy(folder)
                self._problem = ""
            except (OSError, BertdsError) as error:
                # A folder that was pruned meanwhile needs no upload.
                if folder.is_dir() and not self._stopped.is_set():
                    self._again(folder, error)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _again(self, folder: Path, error: Exception) -> None:
        """Queue a checkpoint again after a pause, unless a newer one has been queued by then."""
        self._problem = masked(error)
        log.warning("%s not uploaded: %s", folder.name, self._problem)
        # It remains the current one during the pause, so that it is not removed.
        self._stopped.wait(AGAIN_SECONDS)
        with self._changed:
            if not self._waiting:
                self._waiting.append(folder)

    def _copy(self, folder: Path) -> None:
        there = storage.join(self.url, folder.name)
        manifest = folder / MANIFEST
        steps = listed(self.url)
        # The same manifest means that the copy is complete: it is uploaded last.
        if MANIFEST in steps.get(folder.name, ()):
            if storage.read_bytes(storage.join(there, MANIFEST)) == manifest.read_bytes():
                return
            storage.remove(storage.join(there, MANIFEST))  # from another run of this step
        began = time.monotonic()
        for record in read_manifest(folder)["files"]:
            name = record["file"]
            storage.upload(folder / name, storage.join(there, name), stopped=self._stopped)
        storage.upload(manifest, storage.join(there, MANIFEST), stopped=self._stopped)
        log.info(
            "uploaded %s to %s in %.1f s", folder.name, masked(self.url), time.monotonic() - began
        )
        self._prune(folder.name)

    def _prune(self, newest: str) -> None:
        """Remove copies that no rule keeps, and the files of interrupted uploads."""
        steps = listed(self.url)
        whole = [step_of(name) for name, files in steps.items() if MANIFEST in files]
        gone = set(map(step_name, self._superfluous(whole)))
        for name, files in steps.items():
            if name in gone or (MANIFEST not in files and name != newest):
                # The manifest first: without it a partly removed copy does not count.
                for file in sorted(files, key=lambda file: file != MANIFEST):
                    storage.remove(storage.join(self.url, f"{name}/{file}"))
                storage.remove_empty_folder(storage.join(self.url, name))


def restore(
    url: str,
    checkpoints: Path,
    seconds: float,
    accept: Callable[[str, Mapping[str, Any]], None],
) -> None:
    """Fetch the newest intact copy into the run folder if no local checkpoint is as new.

    The newest copy is checked even if it is not fetched, because this run will upload its own
    checkpoints there and remove those that no rule keeps.

    Args:
        url: the folder that holds the copies.
        checkpoints: the run's checkpoint folder.
        seconds: how long the store may fail to answer.
        accept: called with the URL of a copy and its manifest; raises if the copy belongs to
            another run, which ends the start.

    Raises:
        ConfigError: from ``accept``; nothing was fetched or removed.
        StoreError: the store did not answer in time. Training does not start then, because the
            store may contain a newer checkpoint than the run folder.
    """
    local = _newest_step(checkpoints)
    for name, files in listed(url, seconds).items():
        if MANIFEST not in files:
            continue
        there, temporary = storage.join(url, name), checkpoints / f".tmp-{name}"
        # Only the manifest at first: it may show that nothing else is needed.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            data = storage.read_agreed(storage.join(there, MANIFEST), seconds)
            (temporary / MANIFEST).write_bytes(data)
            manifest = read_manifest(temporary)
            if manifest["step"] != step_of(name):
                raise CheckpointError(f"its manifest is that of step {manifest['step']}")
            accept(there, manifest)
            if step_of(name) <= local:
                return
            _fetch(there, temporary, checkpoints / name, seconds)
        except (CheckpointError, DataError, FileNotFoundError) as error:
            log.warning("%s/%s: %s; looking for an older checkpoint", masked(url), name, error)
            continue
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        log.info("fetched %s from %s", name, masked(url))
        return


def _newest_step(checkpoints: Path) -> int:
    """Return the step of the newest intact local checkpoint, or -1 if there is none."""
    for folder in step_folders(checkpoints):
        try:
            CheckpointReader(folder)
        except CheckpointError:
            continue
        return step_of(folder.name)
    return -1


def _fetch(url: str, temporary: Path, final: Path, seconds: float) -> None:
    """Fetch the files that the manifest in ``temporary`` lists, and publish the checkpoint."""
    for record in read_manifest(temporary)["files"]:
        path = temporary / record["file"]
        there = storage.join(url, record["file"])
        storage.download(there, path, record["bytes"], record["sha256"], seconds)
    # Each download was verified, so only the manifest and the files' presence are checked.
    CheckpointReader(temporary, verify=False)
    sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)  # damaged: an intact one would not be fetched
    temporary.rename(final)
    write_text(final.parent / "latest", final.name + "\n")
