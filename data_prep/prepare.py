"""Preparation from sources to manifest.

```text
sources --units--> 1 tokenise: part files, each sorted by the hash of its documents
                   2 shuffle:  ranges of hashes -> validation/ and train/ shards
                   3 rows:     NVIDIA HDF5 (--instances)
                   manifest.json, last
```

Units, shards and files are tasks for worker processes. Each task writes one file under a temporary
name, renames it, and leaves a marker with its size and hash in ``OUT/.work``; a killed run started
again does what has no valid marker. Which unit, worker or path a document came from leaves no
trace in the result: documents are ordered by the hash of their text.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertds.data.manifest import Manifest, ShardInfo, SplitInfo
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.errors import DataError
from bertds.files import FolderLock, explain_os_error, remove_leftovers, sha256_file
from data_prep import progress
from data_prep.document import SourceFile, Unit
from data_prep.earlier import WORK_FOLDER, EarlierRun
from data_prep.markers import inputs_hash, read_marker, write_marker
from data_prep.options import prep_settings, source_files, source_licences, worker_count
from data_prep.settings import PrepSettings
from data_prep.shuffle_stage import ShardTask, plan_shards, write_shard
from data_prep.sources import file_units
from data_prep.summary import count_documents, report
from data_prep.tokenise_stage import StageTask, run_stage
from data_prep.vocab import train_vocabulary, write_tokenizer_folder, write_vocabulary
from data_prep.workers import Workers

_SMALLEST_UNIT, _LARGEST_UNIT = 1 << 20, 32 << 20
_UNITS_WANTED = 64


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line says. Returns 0."""
    began = time.monotonic()
    files = source_files(args)
    settings = prep_settings(args, files)
    licences = source_licences(args.licence)
    if settings.instances:
        # Here and below, not at the top: it imports a compiler, which takes a second.
        from data_prep.instance_stage import row_settings

        for request in settings.instances:
            row_settings(settings, request)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FolderLock(out, "preparation") as lock:
            earlier = EarlierRun(out, files, settings, args.overwrite)
            if earlier.is_finished():
                progress.say(f"{out}: prepared before with these settings, all files intact")
                return 0
            with Workers(worker_count(args.workers, files)) as workers:
                run = _Run(out, files, settings, workers, lock, args.vocab)
                manifest = run.execute(earlier, licences)
    except OSError as error:
        path = Path(error.filename or out)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        raise explain_os_error(error, path) from error
    report(out, manifest, time.monotonic() - began)
    return 0


class _Run:
    """One preparation, holding the lock of its folder."""

    def __init__(
        self,
        out: Path,
        files: list[SourceFile],
        settings: PrepSettings,
        workers: Workers,
        lock: FolderLock,
        vocab: str | None,
    ) -> None:
        self.out, self.files, self.settings = out, files, settings
        self.workers, self.lock = workers, lock
        self.work = out / WORK_FOLDER
        self.vocab_given = load_tokenizer_info(vocab).files["vocab.txt"] if vocab else None

    def execute(self, earlier: EarlierRun, licences: dict[str, str]) -> Manifest:
        """Run the stages and write the manifest."""
        remove_leftovers(self.out)
        for folder in ("train", "validation", "tokenizer"):
            if (self.out / folder).is_dir():
                remove_leftovers(self.out / folder)
        for folder in ("text", "tokens", "shards", "rows"):
            (self.work / folder).mkdir(exist_ok=True)
            remove_leftovers(self.work / folder)

        results = self._read_sources()
        tokenizer = self._vocabulary(results)
        if self.settings.vocab_size:
            tokenised = self._tokenise_text(tokenizer)
            results += tokenised
        else:
            tokenised = results
        parts = sorted((self.work / "tokens").glob("*.part"))
        contents = inputs_hash(r["file_sha256"] for r in tokenised)
        shards = self._write_shards(parts, tokenizer, contents)
        splits = {
            split: [ShardInfo(**s["info"]) for s in shards if s["split"] == split]
            for split in ("train", "validation")
        }
        earlier.check_repair(splits)
        instances = self._write_instances(splits, tokenizer)
        sources, documents = count_documents(self.files, results, shards, licences)
        manifest = Manifest(
            tokenizer=tokenizer,
            splits={name: SplitInfo(shards=tuple(infos)) for name, infos in splits.items()},
            documents=documents,
            settings=self.settings.to_json(),
            sources=sources,
            instances=instances,
        )
        manifest.save(self.out)
        shutil.rmtree(self.work, ignore_errors=True)
        return manifest

    def _units(self) -> Iterator[Unit]:
        total = sum(file.bytes for file in self.files)
        size = min(max(total // _UNITS_WANTED, _SMALLEST_UNIT), _LARGEST_UNIT)
        for file in self.files:
            yield from file_units(file, size)

    def _read_sources(self) -> list[dict[str, Any]]:
        """Stage 1: every unit becomes a part of tokens, or of text if the vocabulary is to come."""
        results: list[dict[str, Any]] = []
        folder = self.work / ("text" if self.settings.vocab_size else "tokens")
        vocab = self.vocab_given
        fingerprint = self.settings.vocab_sha256
        stage = "read" if self.settings.vocab_size else "tokenise"
        known: set[str] = set()
        with progress.Progress(stage, sum(f.bytes for f in self.files), "bytes") as bar:

            def done(result: dict[str, Any]) -> None:
                results.append(result)
                self.lock.refresh()
                bar.add(result["size"], sum(c.get("read", 0) for c in result["counts"].values()))

            def tasks() -> Iterator[StageTask]:
                for unit in self._units():
                    name = _unit_name(unit)
                    known.add(name)
                    part, marker = folder / f"{name}.part", folder / f"{name}.json"
                    earlier = read_marker(marker, part)
                    if earlier is not None:
                        done(earlier)
                        continue
                    yield StageTask(
                        unit=unit,
                        part=part,
                        marker=marker,
                        seed=self.settings.seed,
                        language=self.settings.language,
                        min_tokens=self.settings.min_tokens,
                        vocab=vocab,
                        lower_case=self.settings.lower_case,
                        fingerprint=fingerprint,
                    )

            self.workers.run(run_stage, tasks(), done)
        for part in folder.glob("*.part"):  # of a source that was touched between two runs
            if part.stem not in known:
                part.unlink()
        return results

    def _vocabulary(self, results: list[dict[str, Any]]) -> TokenizerInfo:
        """Write OUT/tokenizer from the given vocabulary, or from one trained on the text."""
        settings = self.settings
        folder = self.out / "tokenizer"
        if settings.vocab_size:
            vocab, marker = self.work / "vocab.txt", self.work / "vocab.json"
            inputs = inputs_hash(r["file_sha256"] for r in results)
            if read_marker(marker, vocab, inputs) is None:
                if not any(r["documents"] for r in results):
                    raise DataError("no document is left to train a vocabulary on")
                progress.say(f"training a vocabulary of {settings.vocab_size} tokens")
                parts = sorted((self.work / "text").glob("*.part"))
                tokens = train_vocabulary(
                    parts, settings.vocab_size, settings.lower_case, settings.vocab_sample_bytes
                )
                write_vocabulary(vocab, tokens)
                write_marker(marker, vocab, {}, inputs)
        else:
            assert self.vocab_given is not None
            vocab = self.vocab_given
        write_tokenizer_folder(folder, vocab.read_bytes(), settings.lower_case)
        return load_tokenizer_info(folder, settings.lower_case)

    def _tokenise_text(self, tokenizer: TokenizerInfo) -> list[dict[str, Any]]:
        """Stage 1, second half, with ``--train-vocab``: parts of text become parts of tokens."""
        results: list[dict[str, Any]] = []
        folder = self.work / "tokens"
        texts = sorted((self.work / "text").glob("*.part"))
        total = sum(path.stat().st_size for path in texts)
        for part in folder.glob("*.part"):
            if not (self.work / "text" / part.name).exists():
                part.unlink()
        with progress.Progress("tokenise", total, "bytes") as bar:

            def done(result: dict[str, Any]) -> None:
                results.append(result)
                self.lock.refresh()
                bar.add(result["size"], result["documents"])

            def tasks() -> Iterator[StageTask]:
                for text in texts:
                    part, marker = folder / text.name, folder / f"{text.stem}.json"
                    inputs = inputs_hash([tokenizer.fingerprint, sha256_file(text)])
                    earlier = read_marker(marker, part, inputs)
                    if earlier is not None:
                        done(earlier)
                        continue
                    yield StageTask(
                        unit=None,
                        part=part,
                        marker=marker,
                        seed=self.settings.seed,
                        language=self.settings.language,
                        min_tokens=self.settings.min_tokens,
                        vocab=self.out / "tokenizer" / "vocab.txt",
                        lower_case=self.settings.lower_case,
                        fingerprint=tokenizer.fingerprint,
                        inputs=inputs,
                        text_part=text,
                    )

            self.workers.run(run_stage, tasks(), done)
        return results

    def _write_shards(
        self, parts: list[Path], tokenizer: TokenizerInfo, contents: str
    ) -> list[dict[str, Any]]:
        """Stage 2: gather ranges of keys from all parts."""
        settings = self.settings
        ranges = plan_shards(parts, settings.shard_tokens, settings.validation_fraction)
        results: dict[tuple[str, int], dict[str, Any]] = {}
        for split in ("train", "validation"):
            (self.out / split).mkdir(exist_ok=True)
        with progress.Progress("shuffle", len(ranges), "shards") as bar:

            def done(result: dict[str, Any]) -> None:
                results[result["split"], result["number"]] = result
                self.lock.refresh()
                bar.add(1)

            def tasks() -> Iterator[ShardTask]:
                for one in ranges:
                    marker = self.work / "shards" / f"{one.split}-{one.number}.json"
                    file = self.out / one.split / f"shard_{one.number:05d}.h5"
                    inputs = inputs_hash([contents, *one])
                    earlier = read_marker(marker, file, inputs)
                    if earlier is not None:
                        done(earlier)
                        continue
                    yield ShardTask(
                        range=one,
                        parts=tuple(parts),
                        out=self.out,
                        marker=marker,
                        vocab_size=tokenizer.vocab_size,
                        fingerprint=tokenizer.fingerprint,
                        inputs=inputs,
                    )

            self.workers.run(write_shard, tasks(), done)
        return [results[key] for key in sorted(results)]

    def _write_instances(
        self, splits: dict[str, list[ShardInfo]], tokenizer: TokenizerInfo
    ) -> list[dict[str, Any]]:
        if not self.settings.instances:
            return []
        from data_prep.instance_stage import folder_settings, instance_tasks, write_rows

        tasks = instance_tasks(self.out, self.work / "rows", splits, self.settings, tokenizer)
        results: dict[str, dict[str, Any]] = {}
        for folder in {(self.out / task.file).parent for task in tasks}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        with progress.Progress("rows", len(tasks), "files") as bar:

            def done(result: dict[str, Any]) -> None:
                results[result["file"]] = result
                self.lock.refresh()
                bar.add(1)

            def open_tasks() -> Iterator[Any]:
                for task in tasks:
                    earlier = read_marker(task.marker, self.out / task.file, task.inputs)
                    if earlier is not None:
                        done(earlier)
                        continue
                    yield task

            self.workers.run(write_rows, open_tasks(), done)
        entries = []
        for request in self.settings.instances:
            name = folder_settings(self.settings, request).name()
            own = [r for file, r in results.items() if file.startswith(f"{name}/")]
            entries.append(
                {
                    "folder": name,
                    "dataset": self.settings.dataset,
                    "sequence_length": request.sequence_length,
                    "max_predictions": request.max_predictions,
                    "masked_lm_prob": self.settings.masked_lm_prob,
                    "dupe_factor": self.settings.dupe_factor,
                    "files": [
                        {
                            "file": r["file"],
                            "bytes": r["file_bytes"],
                            "sha256": r["file_sha256"],
                            "rows": r["rows"],
                        }
                        for r in sorted(own, key=lambda r: r["file"])
                    ],
                }
            )
        return entries


def _unit_name(unit: Unit) -> str:
    """Return a name for the unit's part that changes when the file does."""
    stat = unit.path.stat()
    identity = [*unit[:6], *unit.options, stat.st_size, stat.st_mtime_ns]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()
