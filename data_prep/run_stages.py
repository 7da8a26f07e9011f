"""Preparation from sources to manifest.

```text
sources --units--> 1 tokenize: part files, each sorted by the hash of its documents
                   2 shuffle:  ranges of hashes -> validation/ and train/ shards
                   3 rows:     NVIDIA HDF5 (--instances)
                   manifest.json, last
```

Units, shards and files are tasks for worker processes, of this process or of several on one or more
hosts (data_prep/workers/team.py). Each task writes one file under a temporary name, renames it, and
writes a marker with its size and hash to ``OUT/.work``. A killed run that is started again does
what has no valid marker. The result does not depend on which unit, worker, process or path a
document came from, because documents are ordered by the hash of their text.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bertds.data.formats.manifest import Manifest, ShardInfo, SplitInfo
from bertds.data.tokenizer_json import JsonTokenizer
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.system.atomic_files import remove_leftovers, sha256_file
from bertds.system.fault_points import reached
from data_prep import progress
from data_prep.document import Unit
from data_prep.earlier_run import WORK_FOLDER, EarlierRun, remove_unlisted
from data_prep.report.counts import check_any_left, count_documents, warn_of_unknown
from data_prep.report.page import offer_report
from data_prep.resolve import Resolved
from data_prep.selection.drop_log import gather, logs_in_order
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
from data_prep.store_output import publish
from data_prep.workers.team import Group, Team


class StageRun:
    """One run through the stages, or one task's part of it."""

    def __init__(self, resolved: Resolved, team: Team, sample: list[Unit] | None = None) -> None:
        """Set up what all stages need.

        Args:
            resolved: what to prepare.
            team: distributes the work.
            sample: only these units of the files, for a dry run.
        """
        self.resolved, self.team, self.sample = resolved, team, sample
        self.out, self.settings = resolved.out, resolved.settings
        self.url = resolved.url
        self.files = resolved.files
        self.sources = source_order(self.files)
        self.work = self.out / WORK_FOLDER
        vocab = resolved.request.vocab
        rules = self.settings.rules
        self.vocab_given = load_tokenizer_info(vocab, *rules).main_file if vocab else None
        self.test_ngrams: Path | None = None
        if resolved.test_ngrams is not None:
            self.test_ngrams = self.work / "test_ngrams.npy"
            team.once("test-ngrams", partial(resolved.test_ngrams.save, self.test_ngrams))

    def execute(self, earlier: EarlierRun) -> Manifest:
        """Run the stages, write the manifest and return it."""
        results = self._read_sources()
        tokenizer = self._vocabulary(results)
        # With --train-vocab, stage 1 wrote text, which is tokenized now.
        if self.settings.vocab_size:
            tokenised = self._tokenise_text(tokenizer, results)
            results += tokenised
        else:
            tokenised = results
        check_any_left(tokenised, results)
        self.team.once("unknown", lambda: warn_of_unknown(tokenised, tokenizer))
        shards = self._write_shards(tokenised, tokenizer)
        # The shards' entries in the manifest, by split.
        splits = {
            split: [ShardInfo(**s["info"]) for s in shards if s["split"] == split]
            for split in ("train", "validation")
        }
        self.team.once("repair", lambda: earlier.check_repair(splits))
        instances = self._write_instances(splits, tokenizer)
        sources, documents = count_documents(
            self.files, results, shards, self.resolved.licences, self.settings.mix
        )
        # Collect the dropped documents of all stages in one file.
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
            # The sources may have changed since an interrupted run wrote its shards.
            remove_unlisted(self.out, manifest)
            reached("prep.report")
            offer_report(self.out, manifest)
            reached("prep.manifest")
            if self.url:
                # Before the local manifest, which marks the preparation as complete. The shards
                # were uploaded by write_shard.
                publish(self.out, self.url, manifest, {shard.file for shard in manifest.shards()})
            manifest.save(self.out)
            reached("prep.finished")
            shutil.rmtree(self.work, ignore_errors=True)
            reached("prep.done")

        self.team.once("manifest", finish)
        return manifest

    @property
    def _first_folder(self) -> str:
        return "text" if self.settings.vocab_size else "tokens"

    def _read_sources(self) -> list[dict[str, Any]]:
        """Stage 1: every unit becomes a part of tokens, or of text before a vocabulary exists."""
        results: list[dict[str, Any]] = []
        folder = self.work / self._first_folder
        stage = "read" if self.settings.vocab_size else "tokenize"
        with progress.Progress(stage, sum(f.bytes for f in self.files), "bytes") as bar:

            def done(result: dict[str, Any]) -> None:
                results.append(result)
                bar.add(result["size"], sum(c.get("read", 0) for c in result["counts"].values()))

            def task(unit: Unit) -> StageTask:
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

            # A forecast reads only a sample of units; a real run reads groups of units file by
            # file.
            if self.sample is None:
                groups = unit_groups(self.files, task)
            else:
                groups = iter([Group("sample", partial(map, task, self.sample))])
            self.team.each(stage, run_stage, groups, done)
        return results

    def _vocabulary(self, results: list[dict[str, Any]]) -> TokenizerInfo:
        """Write OUT/tokenizer from the given vocabulary, or from one trained on the text."""
        # A vocabulary of any form becomes the folder that transformers loads.
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
        """Train a vocabulary on the text parts, unless an earlier run has done so."""
        settings = self.settings
        vocab, marker = self.work / "vocab.txt", self.work / "vocab.json"
        # The vocabulary depends on the text parts, so their hashes decide whether it is up to date.
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
                    f"warning: --train-vocab {settings.vocab_size:,}: the text does not contain "
                    "that many pieces that occur at least twice; the vocabulary has "
                    f"{len(tokens):,}"
                )
            write_vocabulary(vocab, tokens)
            write_marker(marker, vocab, {}, inputs)
        return vocab

    def _parts(self, folder: str, results: list[dict[str, Any]]) -> list[Path]:
        # Not a listing of the folder: it may contain parts of a source that has changed since.
        return [self.work / folder / name for name in sorted({r["part"] for r in results})]

    def _tokenise_text(
        self, tokenizer: TokenizerInfo, results: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Stage 1, second half, with ``--train-vocab``: parts of text become parts of tokens."""
        tokenised: list[dict[str, Any]] = []
        folder = self.work / "tokens"
        texts = self._parts("text", results)
        # From the results: another task may be finished already and have removed the parts.
        size = sum(r["file_bytes"] for r in results)
        with progress.Progress("tokenize", size, "bytes") as bar:

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
        """Stage 2: gather ranges of keys from all parts into shards."""
        settings = self.settings
        parts = self._parts("tokens", tokenised)
        contents = inputs_hash(r["file_sha256"] for r in tokenised)
        for split in ("train", "validation"):
            (self.out / split).mkdir(exist_ok=True)
        # Near-duplicates must be known before the plan, because they take no room in a shard.
        near = self._near_duplicates(parts, contents, sum(r["documents"] for r in tokenised))
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
                    inputs=inputs_hash([contents, *one, *filter(None, [self.url])]),
                    url=self.url,
                )

            groups = (Group(f"{one.split}-{one.number}", partial(tasks, one)) for one in ranges)
            self.team.each("shuffle", write_shard, groups, done)
        return [results[key] for key in sorted(results)]

    def _near_duplicates(self, parts: list[Path], contents: str, documents: int) -> Path | None:
        """Find near-duplicates between stages 1 and 2; return the file with their keys."""
        if self.settings.dedup != "minhash":
            return None
        folder = self.work / "near"
        tasks = link_tasks(parts, documents, self.settings.minhash.bands, folder, contents)
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
        """Stage 3: write files of rows; return the manifest's ``instances``."""
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
