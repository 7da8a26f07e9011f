"""``prepare``: turns a corpus into training shards.

The stages are in data_prep/run_stages.py. This module decides what an output folder needs: nothing,
if it is complete; the rest of a run that was stopped; or everything.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from bertds.data.formats.manifest import MANIFEST_NAME, Manifest
from bertds.errors import DataError, UserError
from bertds.system.atomic_files import explain_os_error, remove_leftovers
from bertds.system.folder_lock import FolderLock
from bertds.system.secrets import masked
from data_prep import dry_run, progress
from data_prep.document import Unit
from data_prep.dry_run import Forecast
from data_prep.earlier_run import REPORT_NAME, EarlierRun
from data_prep.report.counts import report
from data_prep.report.page import offer_report
from data_prep.request import PrepRequest
from data_prep.resolve import Resolved, resolve
from data_prep.run_stages import StageRun
from data_prep.settings import PrepSettings
from data_prep.stages.markers import inputs_hash
from data_prep.store_output import finished_there, manifest_there, publish
from data_prep.workers.joint_lock import TASKS_FOLDER, JointLock
from data_prep.workers.pool import Workers
from data_prep.workers.team import SharedFolderTeam, SingleProcess, Team


def prepare(request: PrepRequest) -> Manifest:
    """Prepare a corpus, or continue where an earlier call was stopped.

    A script that asks for several workers must call this below ``if __name__ == "__main__"``: the
    workers are processes that import the script again.

    Args:
        request: what to prepare, from which sources, into which folder.

    Returns:
        The manifest of the finished folder.

    Raises:
        OtherSettings: the folder was prepared with other settings, or from other sources.
        BertdsError: another error, with a message of one line.
    """
    began = time.monotonic()
    resolved = resolve(request)
    out, url = resolved.out, resolved.url
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise DataError(f"{out}: cannot be written; choose another folder")
        earlier = EarlierRun(out, resolved.files, resolved.settings, request.overwrite)
        whole = request.overwrite or not earlier.work.exists()
        with _team(resolved, earlier) as team:
            finished = team.once("open", lambda: _open(earlier, resolved))
            if finished:
                manifest = manifest_there(url) if url else Manifest.load(out)
            else:
                try:
                    manifest = StageRun(resolved, team).execute(earlier)
                except UserError:
                    earlier.record_refusal()
                    raise
            if url and request.task_count == 1 and earlier.is_of_this():
                # Of several tasks, one that begins last may find the folder complete. Hence only a
                # single task removes its working files.
                earlier.clear()
    except KeyboardInterrupt:
        progress.say(f"{url or out}: interrupted; run the same command again to resume")
        raise
    except OSError as error:
        path = Path(error.filename or out)
        # A wrong --out is the user's mistake; other errors, such as a full disk, are explained.
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        raise explain_os_error(error, path) from error
    if url and request.task_count == 1:
        with suppress(OSError):
            out.rmdir()  # fails, as it should, if it contains files of the user
    if finished:
        _tell_other_licences(resolved, manifest)
        intact = "there" if url else "intact"
        progress.say(
            f"{masked(url) or out}: already prepared with these settings; all files are {intact}"
        )
    else:
        report(out, manifest, time.monotonic() - began, whole, url)
    return manifest


def _tell_other_licences(resolved: Resolved, manifest: Manifest) -> None:
    """Warn that a finished folder keeps the licences with which it was prepared."""
    for source in manifest.sources if resolved.request.licence else ():
        given = resolved.licences.get(source["name"], "")
        if given != source["licence"]:
            progress.say(
                f"warning: {source['name']}: the manifest keeps the licence "
                f"{source['licence'] or 'not stated'!r}; to record {given!r}, change it in "
                f"{MANIFEST_NAME}"
            )


def forecast(request: PrepRequest) -> Forecast:
    """Estimate and print the work, disk space and time of a preparation, from a sample.

    Nothing is written in the output folder.

    Raises:
        BertdsError: as in :func:`prepare`.
    """
    resolved = resolve(request)

    def sample(folder: Path, settings: PrepSettings, team: Team, units: list[Unit]) -> Manifest:
        small = replace(resolved, out=folder, url="", settings=settings)
        earlier = EarlierRun(folder, small.files, settings, False)
        _open(earlier, small)
        return StageRun(small, team, units).execute(earlier)

    found = dry_run.forecast(resolved.files, resolved.settings, sample)
    dry_run.tell(
        found,
        resolved.files,
        resolved.settings,
        resolved.out,
        resolved.workers,
        request.task_count,
    )
    return found


@contextmanager
def _team(resolved: Resolved, earlier: EarlierRun) -> Iterator[Team]:
    """Hold the folder's lock, alone or as one of several tasks, and yield the team of workers."""
    out, request = resolved.out, resolved.request
    with Workers(resolved.workers) as workers:
        if request.task_count > 1:
            # Only tasks with the same settings and sources may work in the folder together.
            goal = inputs_hash([earlier.identity, *filter(None, [resolved.url])])
            group = f"{request.task_count} {goal[:16]}"
            with JointLock(out, group, request.task_index, request.task_count) as joint:
                yield SharedFolderTeam(workers, joint)
        else:
            with FolderLock(out, "preparation"):
                shutil.rmtree(out / TASKS_FOLDER, ignore_errors=True)  # left by killed tasks
                yield SingleProcess(workers)


def _open(earlier: EarlierRun, resolved: Resolved) -> bool:
    """Make the folder ready. Returns whether nothing is left to do."""
    url = resolved.url
    if url and finished_there(url, earlier):
        return True
    if earlier.is_finished():
        manifest = Manifest.load(earlier.out)
        if not (earlier.out / REPORT_NAME).exists():
            offer_report(earlier.out, manifest)
        if url:  # prepared for another URL, or the store has lost something since
            publish(earlier.out, url, manifest, set())
        return True
    # A killed run leaves temporary files, which no other step removes.
    remove_leftovers(earlier.out)
    for folder in ("train", "validation", "tokenizer"):
        if (earlier.out / folder).is_dir():
            remove_leftovers(earlier.out / folder)
    for folder in ("text", "tokens", "near", "shards", "rows"):
        (earlier.work / folder).mkdir(exist_ok=True)
        remove_leftovers(earlier.work / folder)
    return False
