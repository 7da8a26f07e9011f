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
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertds.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, SplitInfo
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.errors import ConfigError, DataError
from bertds.files import FolderLock, explain_os_error, remove_leftovers, sha256_file, write_json
from data_prep import progress
from data_prep.document import DUPLICATE, SourceFile, Unit
from data_prep.instance_stage import folder_settings, instance_tasks, row_settings, write_rows
from data_prep.markers import inputs_hash, read_marker, write_marker
from data_prep.settings import InstanceRequest, PrepSettings, differences
from data_prep.shuffle_stage import ShardTask, plan_shards, write_shard
from data_prep.sources import SOURCE_KINDS, file_units, find_files
from data_prep.tokenise_stage import StageTask, run_stage
from data_prep.vocab import train_vocabulary, write_tokenizer_folder, write_vocabulary
from data_prep.workers import run_tasks

WORK_FOLDER = ".work"
_SMALLEST_UNIT, _LARGEST_UNIT = 1 << 20, 32 << 20
_UNITS_WANTED = 64
_LICENCES = {"wiki": "CC BY-SA (Wikipedia contributors)", "books": "as each book states"}


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line says. Returns 0."""
    began = time.monotonic()
    files = _source_files(args)
    settings = _settings(args, files)
    for request in settings.instances:
        row_settings(settings, request)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FolderLock(out, "preparation") as lock:
            run = _Run(out, lock, files, settings, args)
            if run.is_finished():
                progress.say(f"{out}: prepared before with these settings, all files intact")
                return 0
            manifest = run.execute()
    except OSError as error:
        path = Path(error.filename or out)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        raise explain_os_error(error, path) from error
    _report(out, manifest, time.monotonic() - began)
    return 0


def _source_files(args: argparse.Namespace) -> list[SourceFile]:
    options = {
        "text": (args.text_layout,),
        "jsonl": (args.text_key,),
        "parquet": (args.text_key,),
    }
    files = []
    for kind in SOURCE_KINDS:
        files += find_files(kind, getattr(args, kind, []), options.get(kind, ()))
    if not files:
        raise ConfigError("no source: give --wiki, --books, --text, --jsonl, --parquet or --pubmed")
    return files


def _settings(args: argparse.Namespace, files: list[SourceFile]) -> PrepSettings:
    lower_case, vocab_sha256 = args.lower_case, ""
    if args.vocab:
        tokenizer = load_tokenizer_info(args.vocab, lower_case)
        lower_case = tokenizer.lower_case
        vocab_sha256 = sha256_file(tokenizer.files["vocab.txt"])
    requests = [InstanceRequest.parse(text) for text in args.instances]
    if len({r.sequence_length for r in requests}) < len(requests):
        raise ConfigError("--instances: each sequence length only once")
    kinds = {file.source for file in files}
    names = {
        frozenset({"wiki"}): "wikicorpus_en",
        frozenset({"books"}): "bookscorpus",
        frozenset({"wiki", "books"}): "books_wiki_en_corpus",
    }
    dataset = args.dataset_name or names.get(frozenset(kinds), "corpus")
    if not dataset.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"--dataset-name {dataset!r}: letters, digits, _ and - only")
    return PrepSettings(
        seed=args.seed,
        lower_case=True if lower_case is None else lower_case,
        vocab_size=args.train_vocab,
        vocab_sample_bytes=args.vocab_sample_bytes if args.train_vocab else 100_000_000,
        vocab_sha256=vocab_sha256,
        language=args.language,
        min_tokens=args.min_tokens,
        shard_tokens=args.shard_tokens,
        validation_fraction=args.validation_fraction,
        dataset=dataset,
        instances=tuple(requests),
        dupe_factor=args.dupe_factor,
        masked_lm_prob=args.masked_lm_prob,
        short_seq_prob=args.short_seq_prob,
        whole_word_masking=args.whole_word_masking,
        ngram=args.ngram,
        pairs=args.pairs,
        compression=args.compression,
    )


def _licences(given: list[str]) -> dict[str, str]:
    licences = dict(_LICENCES)
    for text in given:
        source, equals, licence = text.partition("=")
        if not equals or source not in SOURCE_KINDS:
            raise ConfigError(
                f"--licence {text}: expected SOURCE=TEXT, SOURCE one of {', '.join(SOURCE_KINDS)}"
            )
        licences[source] = licence
    return licences


class _Run:
    """One preparation, holding the lock of its folder."""

    def __init__(
        self,
        out: Path,
        lock: FolderLock,
        files: list[SourceFile],
        settings: PrepSettings,
        args: argparse.Namespace,
    ) -> None:
        self.out, self.lock, self.files, self.settings = out, lock, files, settings
        self.work = out / WORK_FOLDER
        self.workers = max(1, args.workers)
        self.vocab_given = (
            load_tokenizer_info(args.vocab).files["vocab.txt"] if args.vocab else None
        )
        self.licences = _licences(args.licence)
        self.overwrite = args.overwrite
        self.repairing: Manifest | None = None

    # ---- what is there already ---------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for results of an earlier run to be used."""
        sources = sorted([f.source, f.reader, f.name, f.bytes, *f.options] for f in self.files)
        return {"sources": json.loads(json.dumps(sources)), **self.settings.to_json()}

    def is_finished(self) -> bool:
        """Look at an earlier run's results; refuse those of another one.

        Raises:
            DataError: the folder holds results of other settings or sources.
        """
        mine = self._identity()
        plan = self.work / "plan.json"
        if (self.out / MANIFEST_NAME).exists():
            manifest = Manifest.load(self.out)
            before = {"sources": _sources_of(manifest), **manifest.settings}
            self._refuse_if_different(before, {**mine, "sources": self._source_names()})
            if (self.out / MANIFEST_NAME).exists():
                damaged = _damaged(self.out, manifest)
                if not damaged:
                    shutil.rmtree(self.work, ignore_errors=True)
                    return True
                progress.say(
                    f"{self.out}: {len(damaged)} file(s) missing or damaged ({damaged[0]}"
                    f"{', ...' if len(damaged) > 1 else ''}); making them again"
                )
                self.repairing = manifest
        elif plan.exists():
            try:
                before = json.loads(plan.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            self._refuse_if_different(before, mine)
        elif self.overwrite:
            self._clear()
        elif (
            foreign := next((p for p in self.out.iterdir() if p.name[0] != "."), None)
        ) is not None:
            raise DataError(
                f"{self.out}: holds {foreign.name} but no {MANIFEST_NAME}; choose an empty folder, "
                "or --overwrite to remove an earlier preparation there"
            )
        self.work.mkdir(exist_ok=True)
        write_json(plan, mine)
        return False

    def _source_names(self) -> list[list[Any]]:
        return sorted([f.source, f.name, f.bytes] for f in self.files)

    def _refuse_if_different(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        different = differences(before, now)
        if not different:
            return
        if self.overwrite:
            self._clear()
            return
        if before.get("sources") != now.get("sources"):
            different = ["the source files are others, or changed"] + [
                d for d in different if not d.startswith("sources:")
            ]
        raise DataError(
            f"{self.out}: prepared with other settings ({'; '.join(different[:3])}); choose "
            "another folder, or --overwrite to begin anew"
        )

    def _clear(self) -> None:
        """Remove what preparation writes, and nothing else."""
        (self.out / MANIFEST_NAME).unlink(missing_ok=True)
        for name in (WORK_FOLDER, "tokenizer", "train", "validation"):
            shutil.rmtree(self.out / name, ignore_errors=True)
        for folder in self.out.glob("hdf5_lower_case_*"):
            shutil.rmtree(folder)

    # ---- the stages --------------------------------------------------------------------------

    def execute(self) -> Manifest:
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
        if self.repairing is not None:
            _same_as_before(self.out, self.repairing, splits)
        instances = self._write_instances(splits, tokenizer)
        sources, documents = _count(self.files, results, shards, self.licences)
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
                bar.add(result["size"], sum(c["read"] for c in result["counts"].values()))

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

            run_tasks(run_stage, tasks(), self.workers, done)
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

            run_tasks(run_stage, tasks(), self.workers, done)
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

            run_tasks(write_shard, tasks(), self.workers, done)
        return [results[key] for key in sorted(results)]

    def _write_instances(
        self, splits: dict[str, list[ShardInfo]], tokenizer: TokenizerInfo
    ) -> list[dict[str, Any]]:
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

            run_tasks(write_rows, open_tasks(), self.workers, done)
        entries = []
        for request in self.settings.instances:
            folder = folder_settings(self.settings, request).name()
            own = [r for file, r in results.items() if file.startswith(f"{folder}/")]
            entries.append(
                {
                    "folder": folder,
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


def _sources_of(manifest: Manifest) -> list[list[Any]]:
    return sorted([s["name"], f["name"], f["bytes"]] for s in manifest.sources for f in s["files"])


def _damaged(out: Path, manifest: Manifest) -> list[str]:
    """Return the files of a finished folder that are missing or changed."""
    entries = [asdict(shard) for split in manifest.splits.values() for shard in split.shards]
    entries += [file for instance in manifest.instances for file in instance["files"]]
    damaged = []
    for entry in entries:
        path = out / entry["file"]
        try:
            good = path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        except OSError:
            good = False
        if not good:
            damaged.append(entry["file"])
    try:
        folder = load_tokenizer_info(out / "tokenizer", manifest.tokenizer.lower_case)
        good = folder.fingerprint == manifest.tokenizer.fingerprint
        good = good and (out / "tokenizer" / "tokenizer.json").is_file()
    except DataError:
        good = False
    return damaged if good else [*damaged, "tokenizer/"]


def _same_as_before(out: Path, manifest: Manifest, splits: dict[str, list[ShardInfo]]) -> None:
    """Check that repaired shards are the lost ones."""
    for name, infos in splits.items():
        if list(manifest.splits[name].shards) != infos:
            (out / MANIFEST_NAME).unlink()
            progress.say(f"{out}: the sources have changed; all files are made again")
            return


def _count(
    files: list[SourceFile],
    results: list[dict[str, Any]],
    shards: list[dict[str, Any]],
    licences: dict[str, str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the manifest's ``sources`` and ``documents``; read = written + dropped in each."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for source, of_source in result["counts"].items():
            counts.setdefault(source, Counter()).update(of_source)
    sources = []
    totals: Counter[str] = Counter()
    dropped_totals: Counter[str] = Counter()
    for kind in SOURCE_KINDS:
        own = [file for file in files if file.source == kind]
        if not own:
            continue
        dropped = Counter(counts.get(kind, {}))
        read = dropped.pop("read", 0)
        written = sum(shard["written"].get(kind, 0) for shard in shards)
        duplicates = sum(shard["duplicates"].get(kind, 0) for shard in shards)
        if duplicates:
            dropped[DUPLICATE] += duplicates
        sources.append(
            {
                "name": kind,
                "kind": ",".join(sorted({file.reader for file in own})),
                "licence": licences.get(kind, ""),
                "files": [{"name": f.name, "bytes": f.bytes} for f in own],
                "documents_read": read,
                "documents_written": written,
                "dropped": dict(sorted(dropped.items())),
            }
        )
        totals.update(read=read, written=written)
        dropped_totals.update(dropped)
    documents = {
        "read": totals["read"],
        "written": totals["written"],
        "dropped": dict(sorted(dropped_totals.items())),
    }
    return sources, documents


def _report(out: Path, manifest: Manifest, seconds: float) -> None:
    documents = manifest.documents
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in documents["dropped"].items())
    rows = {
        "documents": f"{documents['read']:,} read, {documents['written']:,} written",
        "dropped": dropped or "none",
    }
    for name, split in manifest.splits.items():
        rows[name] = (
            f"{split.documents:,} documents, {split.sentences:,} sentences, "
            f"{split.tokens:,} tokens in {len(split.shards)} shard(s)"
        )
    for instance in manifest.instances:
        count = sum(file["rows"] for file in instance["files"])
        rows[f"rows {instance['sequence_length']}"] = f"{count:,} in {len(instance['files'])} files"
    rows["vocabulary"] = (
        f"{manifest.tokenizer.vocab_size:,} tokens, "
        f"{'uncased' if manifest.tokenizer.lower_case else 'cased'}"
    )
    rows["time"] = f"{seconds:.1f} s"
    progress.say(f"prepared {out}")
    progress.summary(rows)
