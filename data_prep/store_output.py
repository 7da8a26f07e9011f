"""Writes a preparation to a store (``--out URL``): there too, it is complete or invisible.

```text
work folder on this machine --each complete shard-------------> URL/train/shard_00000.h5
                            --rows, tokenizer, report---------> URL/...
                            --last----------------------------> URL/manifest.json
```

The work folder is like that of any preparation, so that a killed run continues in it after a
restart. A shard with a marker has been uploaded. The folder gets its own manifest only after the
store has one. Then the files of the preparation are removed from it, unless several tasks share it.

All of this happens under the lock of the work folder. Therefore files that another task or process
is writing are neither inspected nor removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from bertds.data.formats.manifest import MANIFEST_NAME, Manifest
from bertds.data.remote.folder import mirror
from bertds.data.vocabulary import TOKENIZER_FILES
from bertds.errors import ConfigError, DataError
from bertds.system import storage
from bertds.system.secrets import masked
from data_prep import progress
from data_prep.earlier_run import (
    EarlierRun,
    OtherSettings,
    listed_files,
    unlisted,
    warn_of_unlisted,
)

_DROPPED = re.compile(r"dropped/[^/]+\.jsonl")


def work_folder(url: str, asked: str | Path | None, task_count: int) -> Path:
    """Return the folder on this machine in which a preparation for a URL works.

    Raises:
        ConfigError: several tasks need a shared folder, but none was given.
    """
    if asked:
        return Path(asked)
    if task_count > 1:
        raise ConfigError(
            "--out URL with --task-count above 1 requires a shared work folder; set it with "
            "--work-dir DIR"
        )
    named = hashlib.sha256(url.partition("?")[0].encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bertds-prep-{os.geteuid()}" / named


def manifest_there(url: str) -> Manifest:
    """Return the manifest of the preparation in the store.

    Raises:
        DataError, StoreError: the manifest is missing or damaged; the store refused or did not
            answer.
    """
    with tempfile.TemporaryDirectory() as cache:
        return Manifest.load(mirror(url, Path(cache), storage.PATIENCE_SECONDS))


def finished_there(url: str, earlier: EarlierRun) -> bool:
    """Return whether the store already has the finished result of this preparation.

    With ``--overwrite``, or where files are missing, the manifest is removed from the store first.
    So the folder never looks complete while files are replaced.

    Raises:
        OtherSettings: it was made with other settings or from other sources.
        DataError, StoreError: the store refused or did not answer.
    """
    marker = storage.join(url, MANIFEST_NAME)
    # Without a manifest nothing is finished. A damaged one is refused, unless it may be replaced.
    try:
        storage.read_bytes(marker)
    except FileNotFoundError:
        return False
    missing: list[str] = []
    try:
        manifest = manifest_there(url)
        different = earlier.different_from(manifest)
    except DataError:
        if not earlier.overwrite:
            raise
        different = ["the manifest is damaged"]
    if different and not earlier.overwrite:
        raise OtherSettings(
            f"{masked(url)}: prepared with other settings or sources ({'; '.join(different[:3])})"
        )
    if not different:
        there = storage.list_files(url)
        missing = _missing(there, manifest)
        if not missing:
            warn_of_unlisted(masked(url), there, manifest)
            return True
        progress.say(f"{masked(url)}: {missing[0]} is missing or truncated; preparing it again")
    storage.remove(marker)
    return False


def publish(out: Path, url: str, manifest: Manifest, uploaded: Set[str]) -> None:
    """Upload a prepared folder, the manifest last.

    Args:
        out: the folder; its own manifest may still be missing.
        url: the destination.
        manifest: manifest of the folder.
        uploaded: files that this preparation already uploaded. Those that the store does not have
            in full size are uploaded again.

    Raises:
        DataError, StoreError: the store refused or did not answer.
    """
    there = uploaded - set(_missing(storage.list_files(url), manifest))
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if not name.startswith(".") and name != MANIFEST_NAME and name not in there:
            storage.upload(path, storage.join(url, name))
    # The manifest makes the result visible, so every file must be in the store before it.
    in_store = storage.list_files(url)
    if missing := _missing(in_store, manifest):
        raise DataError(
            f"{masked(url)}: {min(missing)} was uploaded, but is not in the store; run the same "
            "command again"
        )
    # What an earlier preparation left there would be taken for a part of this one.
    for name in unlisted(in_store, manifest) + _other_small_files(in_store, out):
        storage.remove(storage.join(url, name))
    with tempfile.TemporaryDirectory() as folder:
        manifest.save(folder)
        storage.upload(Path(folder) / MANIFEST_NAME, storage.join(url, MANIFEST_NAME))
    progress.say(f"uploaded to {masked(url)}")


def _missing(there: Mapping[str, int], manifest: Manifest) -> list[str]:
    """Return the files of a manifest that the store does not have in their full size.

    Args:
        there: sizes of the files in the store, by name.
        manifest: manifest of the folder.
    """
    entries = listed_files(manifest)
    return [entry["file"] for entry in entries if there.get(entry["file"]) != entry["bytes"]]


def _other_small_files(there: Iterable[str], out: Path) -> list[str]:
    """Return the tokenizer files and dropped documents in the store that ``out`` does not have."""
    tokenizer = {f"tokenizer/{name}" for name in TOKENIZER_FILES}
    return [
        name
        for name in there
        if (name in tokenizer or _DROPPED.fullmatch(name)) and not (out / name).is_file()
    ]
