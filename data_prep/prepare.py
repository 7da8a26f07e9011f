"""Preparation from sources to manifest.

```text
sources --units--> 1 tokenise: part files, each sorted by the hash of its documents
                   2 shuffle:  ranges of hashes -> validation/ and train/ shards
                   3 rows:     NVIDIA HDF5 (--instances)
                   manifest.json, last
```

Units, shards and files are tasks for worker processes, of this process or of several on one host
or many (data_prep/workers/team.py). Each task writes one file under a temporary name, renames it,
and leaves a marker with its size and hash in ``OUT/.work``; a killed run started again does what
has no valid marker. Which unit, worker, process or path a document came from leaves no trace in the
result: documents are ordered by the hash of their text.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bertds.data.formats.manifest import Manifest, ShardInfo, SplitInfo
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.errors import DataError
from bertds.system.atomic_files import explain_os_error, remove_leftovers, sha256_file
from bertds.system.folder_lock import FolderLock
from data_prep import progress
from data_prep.document import SourceFile, Unit
from data_prep.dry_run import forecast, tell
from data_prep.earlier_run import REPORT_NAME, WORK_FOLDER, EarlierRun
from data_prep.filter_options import filter_settings
from data_prep.options import prep_settings, source_files, source_licences, worker_count
from data_prep.report.counts import check_any_left, count_documents, report, warn_of_unknown
from data_prep.report.page import write_report
from data_prep.selection.decontaminate import NgramTable
from data_prep.selection.drop_log import gather, logs_in_order
from data_prep.settings import PrepSettings
from data_prep.sources import source_order
from data_prep.stages.markers import inputs_hash, read_marker, write_marker
from data_prep.stages.near_duplicates import (
    choose,
    link_tasks,
    load_dropped,
    save_dropped,
    write_links,
)
from data_prep.stages.shuffle import ShardRange, ShardTask, plan_shards, write_shard
from data_prep.stages.tokenise import StageTask, run_stage
from data_prep.stages.unit_groups import unit_groups, unit_name
from data_prep.stages.vocabulary import train_vocabulary, write_tokenizer_folder, write_vocabulary
from data_prep.workers.joint_lock import TASKS_FOLDER, JointLock
from data_prep.workers.pool import Workers
from data_prep.workers.team import Alone, Group, Team, Together


def prepare(args: argparse.Namespace) -> int:
    """Do what the command line says. Returns 0."""
    began = time.monotonic()
    files = source_files(args)
    filters, test_ngrams = filter_settings(args)
    settings = prep_settings(args, files, filters)
    licences = source_licences(args.licence, files)
    if settings.instances:
        # Here and below, not at the top: it imports a compiler, which takes a second.
        from data_prep.stages.instances import row_settings

        for request in settings.instances:
            row_settings(settings, request)
    out = Path(args.out)

    def begin(folder: Path, settings: PrepSettings, team: Team) -> _Run:
        return _Run(folder, files, settings, team, args.vocab, test_ngrams)

    if args.dry_run:

        def sample(folder: Path, settings: PrepSettings, team: Team, units: list[Unit]) -> Manifest:
            earlier = EarlierRun(folder, files, settings, False)
            _open(earlier)
            run = begin(folder, settings, team)
            run.sample = units
            return run.execute(earlier, licences)

        workers = worker_count(args.workers, files)
        tell(forecast(files, settings, sample), files, settings, out, workers, args.task_count)
        return 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        earlier = EarlierRun(out, files, settings, args.overwrite)
        whole = args.overwrite or not earlier.work.exists()
        with _team(args, earlier, files) as team:
            finished = team.once("open", lambda: _open(earlier))
            if finished:
                progress.say(f"{out}: prepared before with these settings, all files intact")
                return 0
            run = begin(out, settings, team)
            manifest = run.execute(earlier, licences)
    except OSError as error:
        path = Path(error.filename or out)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        raise explain_os_error(error, path) from error
    report(out, manifest, time.monotonic() - began, whole)
    return 0


@contextmanager
def _team(args: argparse.Namespace, earlier: EarlierRun, files: list[SourceFile]) -> Iterator[Team]:
    """Hold the folder's lock, alone or as one of several tasks, and yield who does the work."""
    out: Path = earlier.out
    with Workers(worker_count(args.workers, files)) as workers:
        if args.task_count > 1:
            group = f"{args.task_count} {inputs_hash([earlier.identity])[:16]}"
            with JointLock(out, group, args.task_index, args.task_count) as joint:
                yield Together(workers, joint)
        else:
            with FolderLock(out, "preparation"):
                shutil.rmtree(out / TASKS_FOLDER, ignore_errors=True)  # of tasks that were killed
                yield Alone(workers)


def _open(earlier: EarlierRun) -> bool:
    """Make the folder ready. Returns whether nothing is left to do."""
    if earlier.is_finished():
        if not (earlier.out / REPORT_NAME).exists():
            write_report(earlier.out, Manifest.load(earlier.out))
        return True
    remove_leftovers(earlier.out)
    for folder in ("train", "validation", "tokenizer"):
        if (earlier.out / folder).is_dir():
            remove_leftovers(earlier.out / folder)
    for folder in ("text", "tokens", "near", "shards", "rows"):
        (earlier.work / folder).mkdir(exist_ok=True)
        remove_leftovers(earlier.work / folder)
    return False


class _Run:
    """One preparation, or one task's part in it."""

    def __init__(
        self,
        out: Path,
        files: list[SourceFile],
        settings: PrepSettings,
        team: Team,
        vocab: str | None,
        test_ngrams: NgramTable | None = None,
    ) -> None:
        self.sources = source_order(files)
        self.out, self.files, self.settings, self.team = out, files, settings, team
        self.work = out / WORK_FOLDER
        self.sample: list[Unit] | None = None
        """Only these units of the files, for --dry-run."""
        self.vocab_given = load_tokenizer_info(vocab, *settings.rules).main_file if vocab else None
        self.test_ngrams = None
        if test_ngrams is not None:
            self.test_ngrams = self.work / "test_ngrams.npy"
            team.once("test-ngrams", partial(test_ngrams.save, self.test_ngrams))

    def execute(self, earlier: EarlierRun, licences: dict[str, str]) -> Manifest:
        """Run the stages and write the manifest."""
        results = self._read_sources()
        tokenizer = self._vocabulary(results)
        if self.settings.vocab_size:
            tokenised = self._tokenise_text(tokenizer, results)
            results += tokenised
        else:
            tokenised = results
        check_any_left(tokenised, results)
        self.team.once("unknown", lambda: warn_of_unknown(tokenised, tokenizer))
        shards = self._write_shards(tokenised, tokenizer)
        splits = {
            split: [ShardInfo(**s["info"]) for s in shards if s["split"] == split]
            for split in ("train", "validation")
        }
        self.team.once("repair", lambda: earlier.check_repair(splits))
        instances = self._write_instances(splits, tokenizer)
        sources, documents = count_documents(
            self.files, results, shards, licences, self.settings.mix
        )
        if self.settings.keep_dropped:
            logs = logs_in_order(results, [self.work / self._first_folder, self.work / "tokens"])
            logs += [self.work / "shards" / f"{s['split']}-{s['number']}.dropped" for s in shards]
            self.team.once("dropped", partial(gather, logs, self.work, self.out))
        manifest = Manifest(
            tokenizer=tokenizer,
            splits={name: SplitInfo(shards=tuple(infos)) for name, infos in splits.items()},
            documents=documents,
            settings=self.settings.to_json(),
            sources=sources,
            instances=instances,
        )

        def finish() -> None:
            write_report(self.out, manifest)
            manifest.save(self.out)
            shutil.rmtree(self.work, ignore_errors=True)

        self.team.once("manifest", finish)
        return manifest

    @property
    def _first_folder(self) -> str:
        return "text" if self.settings.vocab_size else "tokens"

    def _read_sources(self) -> list[dict[str, Any]]:
        """Stage 1: every unit becomes a part of tokens, or of text if the vocabulary is to come."""
        results: list[dict[str, Any]] = []
        folder = self.work / self._first_folder
        stage = "read" if self.settings.vocab_size else "tokenise"
        with progress.Progress(stage, sum(f.bytes for f in self.files), "bytes") as bar:

            def done(result: dict[str, Any]) -> None:
                results.append(result)
                bar.add(result["size"], sum(c.get("read", 0) for c in result["counts"].values()))

            def task(unit: Any) -> StageTask:
                name = unit_name(unit)
                return StageTask(
                    unit=unit,
                    part=folder / f"{name}.part",
                    marker=folder / f"{name}.json",
                    settings=self.settings,
                    sources=self.sources,
                    vocab=self.vocab_given,
                    fingerprint=self.settings.vocab_sha256,
                    test_ngrams=self.test_ngrams,
                )

            if self.sample is None:
                groups = unit_groups(self.files, task)
            else:
                groups = iter([Group("sample", partial(map, task, self.sample))])
            self.team.each(stage, run_stage, groups, done)
        return results

    def _vocabulary(self, results: list[dict[str, Any]]) -> TokenizerInfo:
        """Write OUT/tokenizer from the given vocabulary, or from one trained on the text."""
        settings = self.settings
        folder = self.out / "tokenizer"

        def write() -> None:
            vocab = self.vocab_given or self._trained(results)
            if not settings.is_wordpiece:
                JsonTokenizer(vocab).write(folder)
            elif vocab.suffix == ".json":
                tokens = load_tokenizer_info(vocab, *settings.rules).vocabulary()
                contents = "".join(f"{token}\n" for token in tokens).encode()
                write_tokenizer_folder(folder, contents, settings.rules)
            else:
                write_tokenizer_folder(folder, vocab.read_bytes(), settings.rules)

        self.team.once("vocabulary", write)
        return load_tokenizer_info(folder, *settings.rules)

    def _trained(self, results: list[dict[str, Any]]) -> Path:
        settings = self.settings
        vocab, marker = self.work / "vocab.txt", self.work / "vocab.json"
        inputs = inputs_hash(r["file_sha256"] for r in results)
        if read_marker(marker, vocab, inputs) is None:
            check_any_left(results, results)
            progress.say(f"training a vocabulary of {settings.vocab_size} tokens")
            tokens = train_vocabulary(
                self._parts("text", results),
                settings.vocab_size,
                settings.rules,
                settings.vocab_sample_bytes,
            )
            if len(tokens) < settings.vocab_size:
                progress.say(
                    f"warning: --train-vocab {settings.vocab_size:,} asks for more tokens than the "
                    f"text has pieces that occur twice: the vocabulary has {len(tokens):,}"
                )
            write_vocabulary(vocab, tokens)
            write_marker(marker, vocab, {}, inputs)
        return vocab

    def _parts(self, folder: str, results: list[dict[str, Any]]) -> list[Path]:
        # Not what lies in the folder: there may be parts of a source that was touched since.
        return [self.work / folder / name for name in sorted({r["part"] for r in results})]

    def _tokenise_text(
        self, tokenizer: TokenizerInfo, results: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Stage 1, second half, with ``--train-vocab``: parts of text become parts of tokens."""
        tokenised: list[dict[str, Any]] = []
        folder = self.work / "tokens"
        texts = self._parts("text", results)
        with progress.Progress("tokenise", sum(t.stat().st_size for t in texts), "bytes") as bar:

            def done(result: dict[str, Any]) -> None:
                tokenised.append(result)
                bar.add(result["size"], result["documents"])

            def tasks(text: Path) -> Iterator[StageTask]:
                yield StageTask(
                    unit=None,
                    part=folder / text.name,
                    marker=folder / f"{text.stem}.json",
                    settings=self.settings,
                    sources=self.sources,
                    vocab=self.out / "tokenizer" / "vocab.txt",
                    fingerprint=tokenizer.fingerprint,
                    inputs=inputs_hash([tokenizer.fingerprint, sha256_file(text)]),
                    text_part=text,
                )

            groups = (Group(text.stem, partial(tasks, text)) for text in texts)
            self.team.each("tokenise", run_stage, groups, done)
        return tokenised

    def _write_shards(
        self, tokenised: list[dict[str, Any]], tokenizer: TokenizerInfo
    ) -> list[dict[str, Any]]:
        """Stage 2: gather ranges of keys from all parts."""
        settings = self.settings
        parts = self._parts("tokens", tokenised)
        contents = inputs_hash(r["file_sha256"] for r in tokenised)
        for split in ("train", "validation"):
            (self.out / split).mkdir(exist_ok=True)
        near = self._near_duplicates(parts, contents)
        plan = self.team.once(
            "plan",
            lambda: plan_shards(
                parts, settings.shard_tokens, settings.validation_fraction, load_dropped(near)
            ),
        )
        ranges = [ShardRange(*one) for one in plan]
        results: dict[tuple[str, int], dict[str, Any]] = {}
        with progress.Progress("shuffle", len(ranges), "shards") as bar:

            def done(result: dict[str, Any]) -> None:
                results[result["split"], result["number"]] = result
                bar.add(1)

            def tasks(one: ShardRange) -> Iterator[ShardTask]:
                yield ShardTask(
                    range=one,
                    parts=tuple(parts),
                    out=self.out,
                    marker=self.work / "shards" / f"{one.split}-{one.number}.json",
                    vocab_size=tokenizer.vocab_size,
                    fingerprint=tokenizer.fingerprint,
                    sources=self.sources,
                    near=near,
                    keep_duplicates=settings.dedup == "none",
                    keep_dropped=settings.keep_dropped,
                    word_starts=not settings.is_wordpiece,
                    inputs=inputs_hash([contents, *one]),
                )

            groups = (Group(f"{one.split}-{one.number}", partial(tasks, one)) for one in ranges)
            self.team.each("shuffle", write_shard, groups, done)
        return [results[key] for key in sorted(results)]

    def _near_duplicates(self, parts: list[Path], contents: str) -> Path | None:
        """Between stages 1 and 2: find the documents that are nearly another one."""
        if self.settings.dedup != "minhash":
            return None
        folder = self.work / "near"
        tasks = link_tasks(parts, self.settings.minhash.bands, folder, contents)
        with progress.Progress("near-duplicates", len(tasks), "bands") as bar:
            groups = (Group(task.out.stem, partial(iter, [task])) for task in tasks)
            self.team.each("near", write_links, groups, lambda _: bar.add(1))
        dropped = folder / "dropped.npy"
        links = [task.out for task in tasks]
        self.team.once("near", lambda: save_dropped(dropped, choose(parts, links)))
        return dropped

    def _write_instances(
        self, splits: dict[str, list[ShardInfo]], tokenizer: TokenizerInfo
    ) -> list[dict[str, Any]]:
        """Stage 3: files of rows. Returns the manifest's ``instances``."""
        if not self.settings.instances:
            return []
        from data_prep.stages.instances import instance_entries, instance_tasks, write_rows

        tasks = instance_tasks(self.out, self.work / "rows", splits, self.settings, tokenizer)

        def make_folders() -> None:
            for folder in {(self.out / task.file).parent for task in tasks}:
                folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(folder)

        self.team.once("folders", make_folders)
        results: list[dict[str, Any]] = []
        with progress.Progress("rows", len(tasks), "files") as bar:

            def done(result: dict[str, Any]) -> None:
                results.append(result)
                bar.add(1)

            groups = (Group(task.marker.stem, partial(iter, [task])) for task in tasks)
            self.team.each("rows", write_rows, groups, done)
        return instance_entries(self.settings, results)
