"""Decides whether earlier results in a folder are complete, resumed, repaired or refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertds.data.formats.manifest import MANIFEST_NAME, Manifest, ShardInfo
from bertds.data.vocabulary import TOKENIZER_FILES, load_tokenizer_info
from bertds.display import words
from bertds.errors import DataError
from bertds.system.atomic_files import TEMPORARY_PREFIX, sha256_file, write_json
from bertds.system.json_fields import parse_json
from data_prep import progress
from data_prep.document import SourceFile
from data_prep.settings import PrepSettings, differences
from data_prep.sources.reading import file_facts

WORK_FOLDER = ".work"
REPORT_NAME = "report.html"

_SHARD_OR_ROWS = re.compile(
    r"(?:train|validation)/shard_\d{5,}\.h5"
    r"|hdf5_lower_case_[^/]+/([^/]+)/\1_(?:training|test)_\d+\.hdf5"
)

_WRITTEN = re.compile(
    rf"{_SHARD_OR_ROWS.pattern}|dropped/[^/]+\.jsonl"
    rf"|tokenizer/(?:{'|'.join(map(re.escape, TOKENIZER_FILES))})"
    rf"|(?:[^/]+/)+{re.escape(TEMPORARY_PREFIX)}[^/]+"
)
"""The files below the folder of the result that preparation writes, in its subfolders."""


class OtherSettings(DataError):
    """The folder was prepared with other settings, or from other sources.

    Attributes:
        what: the folder and the differences, without the remedy.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; choose another folder, or replace it with --overwrite")
        self.what = what


class EarlierRun:
    """The contents of an output folder in which a run is about to begin."""

    def __init__(
        self, out: Path, files: Sequence[SourceFile], settings: PrepSettings, overwrite: bool
    ) -> None:
        self.out, self.work = out, out / WORK_FOLDER
        self.files = files
        self.plan = self.work / "plan.json"
        self.refused = self.work / "refused.json"
        """The plan of a run that was refused (see :meth:`record_refusal`)."""
        self.overwrite = overwrite
        self.manifest: Manifest | None = None
        """Manifest of a finished folder in which files are missing or damaged."""
        # Earlier results are reused only if all of this is equal.
        self.identity = {
            "sources": sorted([f.source, f.name, f.bytes] for f in files),
            "text options": sorted({f"{f.source} {' '.join(f.options)}" for f in files}),
            **settings.to_json(),
        }

    def is_finished(self) -> bool:
        """Return whether nothing is left to do; if not, make the folder ready to continue.

        Raises:
            DataError: the folder holds results of other settings or sources, or foreign files.
        """
        if (self.out / MANIFEST_NAME).exists() and self._finished_before():
            shutil.rmtree(self.work, ignore_errors=True)
            return True
        # An unfinished run left its plan: continue it if nothing has changed.
        if self.manifest is None and self.plan.exists():
            self._same_or_cleared(self._different_from_plan())
        elif self.manifest is None and self.overwrite:
            self.clear()
        elif self.manifest is None and self.refused.exists():
            self._replace_refused()
        elif self.manifest is None:
            # Without plan and manifest, any file in the folder is the user's own.
            foreign = next((p for p in self.out.iterdir() if p.name[0] != "."), None)
            if foreign is not None:
                raise DataError(
                    f"{self.out}: contains {foreign.name} but no {MANIFEST_NAME}; choose an empty "
                    "folder, or remove an earlier preparation with --overwrite"
                )
        self.work.mkdir(exist_ok=True)
        write_json(self.plan, self.identity)
        self.refused.unlink(missing_ok=True)
        return False

    def record_refusal(self) -> None:
        """Record that the run was refused because of its input.

        It cannot be finished as it is, so a run with other settings or sources may replace it.
        """
        # Another of several tasks may have recorded it, or removed the folder.
        with suppress(OSError):
            os.replace(self.plan, self.refused)

    def _replace_refused(self) -> None:
        """Keep what is still valid of a run that was refused, and remove the rest."""
        before = _read_json(self.refused)
        different = _differences(before, self.identity)
        if not different:  # for example, a truncated file was replaced by one of the same size
            return
        progress.say(
            f"{self.out}: replacing a preparation that was refused ({'; '.join(different[:3])})"
        )
        now = parse_json(json.dumps(self.identity))
        same_settings = {**before, "sources": []} == {**now, "sources": []}
        if same_settings and _source_names(before) == _source_names(now):
            # Parts are named after the state of their file, so those of unchanged files are reused.
            self._clear_output()
        else:
            self.clear()

    def _finished_before(self) -> bool:
        try:
            manifest = Manifest.load(self.out)
        except DataError as error:
            if not self.overwrite:
                raise DataError(f"{error}; use --overwrite to prepare the folder again") from None
            self.clear()  # a damaged manifest contains nothing that could be used
            return False
        if not self._same_or_cleared(self.different_from(manifest)):
            return False
        damaged = damaged_files(self.out, manifest)
        if damaged:
            progress.say(
                f"{self.out}: missing or damaged: {damaged[0]}{words.and_more(damaged)}; preparing "
                "again"
            )
            self.manifest = manifest
        else:
            self._warn(manifest)
        return not damaged

    def _warn(self, manifest: Manifest) -> None:
        """Report what the checksums of a finished folder cannot show."""
        warn_of_unlisted(self.out, _output_files(self.out), manifest)
        finished = (self.out / MANIFEST_NAME).stat().st_mtime_ns
        # The manifest has the sizes of the sources, but hashing them would take as long as reading.
        local = [f.path for f in self.files if isinstance(f.path, Path) and f.reader != "hf"]
        newer = [path for path in local if file_facts(path).st_mtime_ns > finished]
        if newer:
            progress.say(
                f"warning: {newer[0]}{words.and_more(newer)}: modified after {self.out} was "
                "prepared; if the text has changed, prepare it again with --overwrite"
            )

    def different_from(self, manifest: Manifest) -> list[str]:
        """Return how a finished preparation differs from this one, as parts of a message."""
        before = {
            "sources": sorted(
                [s["name"], f["name"], f["bytes"]] for s in manifest.sources for f in s["files"]
            ),
            **manifest.settings,
        }
        now = {key: value for key, value in self.identity.items() if key != "text options"}
        # Manifests of older versions do not record how the text is found in a file.
        recorded = {source["name"]: source for source in manifest.sources}
        for file in self.files:
            for option, value in file.how_text_is_found().items():
                if option in (source := recorded.get(file.source, {})):
                    name = f"{option} of {file.source}"
                    before[name], now[name] = source[option], value
        return _differences(before, now)

    def _different_from_plan(self) -> list[str]:
        return _differences(_read_json(self.plan), self.identity)

    def is_of_this(self) -> bool:
        """Return whether the folder holds this preparation, complete or not."""
        if self.plan.exists():
            return not self._different_from_plan()
        try:
            return not self.different_from(Manifest.load(self.out))
        except DataError:
            return False

    def _same_or_cleared(self, different: list[str]) -> bool:
        if not different:
            return True
        if self.overwrite:
            self.clear()
            return False
        raise OtherSettings(
            f"{self.out}: prepared with other settings or sources ({'; '.join(different[:3])})"
        )

    def clear(self) -> None:
        """Remove all that preparation writes, and nothing else."""
        self._clear_output()
        shutil.rmtree(self.work, ignore_errors=True)

    def _clear_output(self) -> None:
        for name in (MANIFEST_NAME, REPORT_NAME):
            (self.out / name).unlink(missing_ok=True)
        # The user may have a folder of one of these names, such as "train", with other files.
        folders = [self.out / name for name in ("tokenizer", "train", "validation", "dropped")]
        for folder in [*folders, *self.out.glob("hdf5_lower_case_*")]:
            for path in sorted(folder.rglob("*"), reverse=True):  # contents before their folder
                if path.is_dir() and not path.is_symlink():
                    _remove_if_empty(path)
                elif _WRITTEN.fullmatch(path.relative_to(self.out).as_posix()):
                    path.unlink(missing_ok=True)
            _remove_if_empty(folder)

    def check_repair(self, splits: dict[str, list[ShardInfo]]) -> None:
        """Discard the old manifest, with a message, if rebuilt shards differ from the lost ones."""
        if self.manifest is None and (self.out / MANIFEST_NAME).exists():
            self.manifest = Manifest.load(self.out)  # another task inspected the folder
        if self.manifest is None:
            return
        if any(list(self.manifest.splits[name].shards) != infos for name, infos in splits.items()):
            (self.out / MANIFEST_NAME).unlink()
            progress.say(f"{self.out}: the sources have changed; preparing all files again")


def listed_files(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the manifest's entries of all shards and row files."""
    entries = [asdict(shard) for shard in manifest.shards()]
    return entries + [file for instance in manifest.instances for file in instance["files"]]


def unlisted(names: Iterable[str], manifest: Manifest) -> list[str]:
    """Return which files of a prepared folder are shards or rows but are not in its manifest.

    They are left from a preparation of other text, of which there was more: the names are numbered.
    ``bertds`` never reads them, but NeMo reads every file of a folder of rows.
    """
    listed = {entry["file"] for entry in listed_files(manifest)}
    return sorted(n for n in names if n not in listed and _SHARD_OR_ROWS.fullmatch(n))


def remove_unlisted(out: Path, manifest: Manifest) -> None:
    """Remove the shards and rows that an earlier preparation of this folder left."""
    left = unlisted(_output_files(out), manifest)
    for name in left:
        (out / name).unlink(missing_ok=True)
    if left:
        progress.say(
            f"{out}: removed {words.count(len(left), 'file')} of an earlier preparation: {left[0]}"
            f"{words.and_more(left)}"
        )


def warn_of_unlisted(where: Path | str, names: Iterable[str], manifest: Manifest) -> None:
    """Report shards and rows that do not belong to a finished folder."""
    if left := unlisted(names, manifest):
        progress.say(
            f"warning: {where}: {left[0]}{words.and_more(left)}: not listed in {MANIFEST_NAME}, "
            "probably left from an earlier preparation; remove it"
        )


def _output_files(out: Path) -> list[str]:
    patterns = ("train/*", "validation/*", "hdf5_lower_case_*/*/*")
    found = [path for pattern in patterns for path in out.glob(pattern) if path.is_file()]
    return [path.relative_to(out).as_posix() for path in found]


def damaged_files(out: Path, manifest: Manifest) -> list[str]:
    """Return the files of a finished folder that are missing or changed (all are hashed)."""
    damaged = []
    for entry in listed_files(manifest):
        path = out / entry["file"]
        try:
            good = path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        except OSError:
            good = False
        if not good:
            damaged.append(entry["file"])
    # The tokenizer's files are compared as one: its fingerprint covers their contents.
    try:
        tokenizer = load_tokenizer_info(out / "tokenizer", *manifest.tokenizer.rules)
        wanted = len(TOKENIZER_FILES) if tokenizer.is_wordpiece else len(TOKENIZER_FILES) - 1
        good = tokenizer.fingerprint == manifest.tokenizer.fingerprint
        good = good and len(tokenizer.files) == wanted
    except DataError:
        good = False
    return damaged if good else [*damaged, "tokenizer"]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    different = differences(before, parse_json(json.dumps(now)))
    if before.get("sources") != now.get("sources"):
        different = [d for d in different if not d.startswith("sources:")]
        changes = _changed_files(before.get("sources", []), now["sources"])
        different.insert(0, f"the source files have changed: {changes[0]}{words.and_more(changes)}")
    return different


def _changed_files(before: list[list[Any]], now: list[list[Any]]) -> list[str]:
    """Return which source files are missing, new or of another size; each is [source, name, bytes].

    Several files may have the same name, in different folders.
    """
    gone = Counter(map(tuple, before)) - Counter(map(tuple, now))
    new = Counter(map(tuple, now)) - Counter(map(tuple, before))
    sizes: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for number, files in enumerate((gone, new)):
        for source, name, size in files.elements():
            sizes.setdefault((source, name), ([], []))[number].append(size)
    changes = []
    for (_, name), (old, own) in sorted(sizes.items()):
        if old and own:
            changes.append(f"{name} has {own[0]:,} bytes now, {old[0]:,} before")
        else:
            changes.append(f"{name} is {'missing' if old else 'new'}")
    return changes


def _source_names(identity: dict[str, Any]) -> set[str]:
    return {source for source, _, _ in identity.get("sources", [])}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
