"""Preparation into a store (``--out URL``): complete or invisible there too.

```text
work folder on this machine --each shard when it is complete--> URL/train/shard_00000.h5
                            --rows, tokenizer, report---------> URL/...
                            --last----------------------------> URL/manifest.json
```

The work folder is that of any preparation, so a killed run started again continues in it, and a
shard whose marker is there has been uploaded. When the manifest is in the store, it is removed,
unless several tasks share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bertds.data.formats.manifest import MANIFEST_NAME, Manifest
from bertds.data.remote.folder import mirror
from bertds.errors import ConfigError, DataError
from bertds.system import storage
from bertds.system.json_fields import parse_json
from bertds.system.secrets import masked
from data_prep import progress
from data_prep.document import SourceFile
from data_prep.earlier_run import EarlierRun, OtherSettings
from data_prep.settings import PrepSettings, differences


def work_folder(url: str, asked: str | Path | None, task_count: int) -> Path:
    """Return the folder on this machine in which a preparation for a URL works.

    Raises:
        ConfigError: several tasks need one that they share.
    """
    if asked:
        return Path(asked)
    if task_count > 1:
        raise ConfigError(
            "--out is a URL and --task-count is above 1: the tasks need a shared folder; set it "
            "with --work-dir DIR"
        )
    named = hashlib.sha256(url.partition("?")[0].encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bertds-prep-{os.geteuid()}" / named


def finished_there(
    url: str, work: Path, files: Sequence[SourceFile], settings: PrepSettings, overwrite: bool
) -> Manifest | None:
    """Return the manifest of a finished preparation in the store, if it is this one.

    With ``overwrite``, or where files are missing, the manifest is removed there first: what is
    then replaced looks complete at no time.

    Raises:
        OtherSettings: it was made with other settings or from other sources.
        DataError, StoreError: the store refused, or did not answer.
    """
    marker = storage.join(url, MANIFEST_NAME)
    try:
        storage.read_bytes(marker)
    except FileNotFoundError:
        return None
    folder = mirror(url, work / ".store", storage.PATIENCE_SECONDS)
    try:
        manifest = Manifest.load(folder)
        now = parse_json(json.dumps(EarlierRun(folder, files, settings, False).identity))
        now.pop("text options")
        before = {
            "sources": sorted(
                [s["name"], f["name"], f["bytes"]] for s in manifest.sources for f in s["files"]
            ),
            **manifest.settings,
        }
        different = differences(before, now)
    except DataError:
        if not overwrite:
            raise
        different = ["the manifest is damaged"]
    finally:
        shutil.rmtree(work / ".store", ignore_errors=True)
    if different and not overwrite:
        raise OtherSettings(
            f"{masked(url)}: prepared with other settings or sources ({'; '.join(different[:3])})"
        )
    missing = [] if different else _missing(url, manifest)
    if not different and not missing:
        return manifest
    if missing:
        progress.say(f"{url}: {missing[0]} is missing or truncated; preparing it again")
    storage.remove(marker)
    shutil.rmtree(work, ignore_errors=True)
    return None


def publish(out: Path, url: str, manifest: Manifest) -> None:
    """Upload what is not in the store yet, the manifest last.

    Raises:
        DataError, StoreError: the store refused, or did not answer.
    """
    missing = set(_missing(url, manifest))
    shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith(".") or name == MANIFEST_NAME or (name in shards - missing):
            continue
        storage.upload(path, storage.join(url, name))
    if missing := set(_missing(url, manifest)):
        raise DataError(f"{masked(url)}: {min(missing)} was uploaded but is missing")
    storage.upload(out / MANIFEST_NAME, storage.join(url, MANIFEST_NAME))
    progress.say(f"uploaded to {url}")


def _missing(url: str, manifest: Manifest) -> list[str]:
    """Return the files of a manifest that the store does not have in their full size."""
    there = storage.list_files(url)
    entries = [asdict(shard) for split in manifest.splits.values() for shard in split.shards]
    entries += [file for instance in manifest.instances for file in instance["files"]]
    return [entry["file"] for entry in entries if there.get(entry["file"]) != entry["bytes"]]


def clear(work: Path) -> None:
    """Remove the work folder of a preparation that is complete in the store."""
    shutil.rmtree(work, ignore_errors=True)
