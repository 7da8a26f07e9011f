"""Copies of a run's checkpoints in a store (``checkpoint.copy_to``).

```text
URL/step_00000100/rank_00000.safetensors ... manifest.json   uploaded last, removed first
```

Rank 0 uploads in a thread while training continues. A copy without its manifest does not exist:
what a killed upload leaves is removed by a later one. A start on a machine without the checkpoint
(or with a damaged or an older one) fetches the newest good copy into the run folder first.
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

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.format import CheckpointReader
from bertds.checkpoint.manifest import read_manifest
from bertds.errors import BertdsError, CheckpointError, DataError, StoreError
from bertds.system import storage
from bertds.system.atomic_files import sync_folder, write_text
from bertds.system.logs import log
from bertds.system.secrets import masked

MANIFEST = "manifest.json"
_FILE = re.compile(r"(step_[0-9]{8,15})/([^/]+)")
AGAIN_SECONDS = 30.0


def listed(url: str, seconds: float = storage.PATIENCE_SECONDS) -> dict[str, list[str]]:
    """Return the files of every step below a URL, newest step first; complete or not.

    Raises:
        DataError, StoreError: the store refused, or did not answer in time.
    """
    steps: dict[str, list[str]] = {}
    for name in storage.list_files(url, seconds):
        if (found := _FILE.fullmatch(name)) is not None:
            steps.setdefault(found[1], []).append(found[2])
    return dict(sorted(steps.items(), key=lambda one: int(one[0][5:]), reverse=True))


class Copies:
    """Uploads checkpoints, one after the other, in a thread of its own.

    Args:
        url: the folder that holds the copies.
        superfluous: given the steps that are there, newest first, those that no rule keeps.
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
        """Upload a published checkpoint as soon as those before it are done."""
        with self._changed:
            self._waiting.append(folder)
            if self._thread is None:
                # A daemon: the process must be able to end while a driver hangs.
                self._thread = threading.Thread(target=self._work, name="bertds-copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def catch_up(self, checkpoints: Path) -> None:
        """Upload the newest local checkpoint if an earlier process was ended before it could."""
        folders = step_folders(checkpoints)
        if folders:
            self.add(folders[0])

    def release(self, folder: Path) -> bool:
        """Return whether a checkpoint may be removed; one that waits is then not uploaded."""
        with self._changed:
            if folder == self._current:
                return False
            if folder in self._waiting:
                self._waiting.remove(folder)
            return True

    def wait(self, seconds: float) -> None:
        """Wait until everything is uploaded.

        Raises:
            StoreError: something is not uploaded after ``seconds``.
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
        """Upload nothing more."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(5.0)
                    continue
                self._current = self._waiting.popleft()
                folder = self._current
            try:
                self._copy(folder)
                self._problem = ""
            except (OSError, BertdsError) as error:
                if folder.is_dir() and not self._stopped.is_set():
                    self._again(folder, error)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _again(self, folder: Path, error: Exception) -> None:
        """Try a checkpoint once more later, unless a newer one has come by then."""
        self._problem = masked(error)
        log.warning("%s not uploaded: %s", folder.name, self._problem)
        # Still the current one while it waits, so that it is not removed meanwhile.
        self._stopped.wait(AGAIN_SECONDS)
        with self._changed:
            if not self._waiting:
                self._waiting.append(folder)

    def _copy(self, folder: Path) -> None:
        there = storage.join(self.url, folder.name)
        manifest = folder / MANIFEST
        steps = listed(self.url)
        if MANIFEST in steps.get(folder.name, ()):
            if storage.read_bytes(storage.join(there, MANIFEST)) == manifest.read_bytes():
                return
            storage.remove(storage.join(there, MANIFEST))  # of another checkpoint of this step
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
        """Remove copies that no rule keeps, and what killed uploads left."""
        steps = listed(self.url)
        whole = [int(name[5:]) for name, files in steps.items() if MANIFEST in files]
        gone = {f"step_{step:08d}" for step in self._superfluous(whole)}
        for name, files in steps.items():
            if name in gone or (MANIFEST not in files and name != newest):
                for file in sorted(files, key=lambda file: file != MANIFEST):
                    storage.remove(storage.join(self.url, f"{name}/{file}"))
                storage.remove_empty_folder(storage.join(self.url, name))


def restore(
    url: str,
    checkpoints: Path,
    seconds: float,
    accept: Callable[[str, Mapping[str, Any]], None],
) -> None:
    """Bring the newest good copy into the run folder if no local checkpoint is as new.

    The newest copy is checked even if it is not fetched: this run is about to add its own
    checkpoints there, and to remove those that it does not keep.

    Args:
        url: the folder that holds the copies.
        checkpoints: the run's checkpoint folder.
        seconds: how long the store may fail to answer.
        accept: given the URL of a copy and its manifest, raises what is to end the start if the
            copy belongs to another run.

    Raises:
        ConfigError: from ``accept``; nothing was fetched or removed.
        StoreError: the store did not answer in time. Training is not begun without knowing what is
            there: it might be further on.
    """
    local = _newest_step(checkpoints)
    for name, files in listed(url, seconds).items():
        if MANIFEST not in files:
            continue
        there, temporary = storage.join(url, name), checkpoints / f".tmp-{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            data = storage.read_agreed(storage.join(there, MANIFEST), seconds)
            (temporary / MANIFEST).write_bytes(data)
            manifest = read_manifest(temporary)
            if manifest["step"] != int(name[5:]):
                raise CheckpointError(f"its manifest is that of step {manifest['step']}")
            accept(there, manifest)
            if int(name[5:]) <= local:
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
    """Return the step of the newest intact local checkpoint; -1 without any."""
    for folder in step_folders(checkpoints):
        try:
            CheckpointReader(folder)
        except CheckpointError:
            continue
        return int(folder.name[5:])
    return -1


def _fetch(url: str, temporary: Path, final: Path, seconds: float) -> None:
    """Fetch the files that the manifest in ``temporary`` lists, and publish the checkpoint."""
    for record in read_manifest(temporary)["files"]:
        path = temporary / record["file"]
        there = storage.join(url, record["file"])
        storage.download(there, path, record["bytes"], record["sha256"], seconds)
    CheckpointReader(temporary, verify=False)
    sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)  # damaged: an intact one is not fetched again
    temporary.rename(final)
    write_text(final.parent / "latest", final.name + "\n")
