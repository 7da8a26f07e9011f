"""The counts of a preparation, for the manifest and for the closing table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertds.data.formats.manifest import Manifest
from bertds.data.vocabulary import TokenizerInfo
from bertds.display import words
from bertds.errors import DataError
from bertds.system.secrets import masked
from bertds.system.storage import join
from data_prep import progress
from data_prep.document import BAD_UTF8, NAMESPACE, REDIRECT, SourceFile
from data_prep.earlier_run import REPORT_NAME
from data_prep.selection.drop_log import split_counts
from data_prep.selection.mixing import Mix
from data_prep.sources import source_order

_MUCH_UNKNOWN = 0.01
_TO_DECODE = "convert them to UTF-8, or name a book's encoding in a first line "
_TO_DECODE += "'Character set encoding: NAME'"


def count_documents(
    files: Sequence[SourceFile],
    results: Sequence[dict[str, Any]],
    shards: Sequence[dict[str, Any]],
    licences: Mapping[str, str],
    mix: Mix = (),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the manifest's ``sources`` and ``documents``; in each, read = written + dropped.

    With ``--mix`` each source also has ``weight`` and ``documents_repeated`` (``repeated`` in the
    total). The splits then hold more entries than documents were written, by this number.
    """
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for source, of_source in result["counts"].items():
            counts.setdefault(source, Counter()).update(of_source)
    sources = []
    totals: Counter[str] = Counter()
    dropped_totals: Counter[str] = Counter()
    for kind in source_order(files):
        own = [file for file in files if file.source == kind]
        # The key "read" and the encodings are counted together with the reasons of drops.
        dropped, encodings = split_counts(counts.get(kind, {}))
        read = dropped.pop("read", 0)
        written = sum(shard["written"].get(kind, 0) for shard in shards)
        repeated = sum(shard["repeated"].get(kind, 0) for shard in shards)
        # Stage 1 counts what the filters drop; stage 2 adds duplicates and what --mix leaves out.
        for shard in shards:
            dropped.update(shard["dropped"].get(kind, {}))
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
        for file in own:
            sources[-1] |= file.how_text_is_found()
        if encodings:
            sources[-1]["encodings"] = encodings
        if mix:
            sources[-1]["weight"] = dict(mix).get(kind, 1.0)
            sources[-1]["documents_repeated"] = repeated
        totals.update(read=read, written=written, repeated=repeated)
        dropped_totals.update(dropped)
    documents = {
        "read": totals["read"],
        "written": totals["written"],
        "dropped": dict(sorted(dropped_totals.items())),
    }
    if mix:
        documents["repeated"] = totals["repeated"]
    return sources, documents


def check_any_left(last: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> None:
    """Refuse to continue without documents.

    Args:
        last: results of the last stage, whose documents are the ones left.
        results: results of all stages so far.

    Raises:
        DataError: states how many documents were read, and why they were dropped.
    """
    if any(result["documents"] for result in last):
        return
    counts: Counter[str] = Counter()
    for result in results:
        for of_source in result["counts"].values():
            counts.update(of_source)
    counts, _ = split_counts(counts)
    read = counts.pop("read", 0)
    dropped = drops_in_words({key: count for key, count in sorted(counts.items()) if count})
    remedy = f" (not UTF-8; {_TO_DECODE})" if counts[BAD_UTF8] else ""
    raise DataError(
        f"no documents are left; read: {read:,}"
        + (f"; dropped: {dropped}{remedy}" if dropped else "")
    )


def drops_in_words(dropped: Mapping[str, int]) -> str:
    """Return the numbers of dropped documents with their reasons, such as ``2 empty, 1 c4``."""
    named = {NAMESPACE: ("in other namespaces",) * 2, REDIRECT: ("redirect", "redirects")}
    return ", ".join(words.count(n, *named.get(why, (why, why))) for why, n in dropped.items())


def tokenizer_words(tokenizer: TokenizerInfo) -> str:
    """Return a description of the tokenizer's kind: ``uncased``, ``bpe, cased``."""
    if tokenizer.is_wordpiece:
        return tokenizer.rules.casing
    return f"{tokenizer.model}, {'uncased' if tokenizer.lower_case else 'cased'}"


def warn_of_unknown(results: Sequence[dict[str, Any]], tokenizer: TokenizerInfo) -> None:
    """Warn if more than 1% of the tokens are unknown: the vocabulary does not fit the text."""
    # Markers of an interrupted run of an older version lack these counts.
    tokens = sum(result.get("tokens", 0) for result in results)
    unknown = sum(result.get("unknown", 0) for result in results)
    if unknown > _MUCH_UNKNOWN * tokens:
        progress.say(
            f"warning: {unknown:,} of {tokens:,} tokens ({100 * unknown / tokens:.1f}%) are "
            f"{tokenizer.special_tokens['unk']}: the vocabulary ({tokenizer.vocab_size:,} tokens, "
            f"{tokenizer.rules.casing}) does not fit the text; see --train-vocab and --cased"
        )


def report(
    out: Path, manifest: Manifest, seconds: float, whole: bool = True, url: str = ""
) -> None:
    """Print the closing table.

    Args:
        out: the folder that was prepared.
        manifest: manifest of the folder.
        seconds: duration of this run.
        whole: this run did all the work, so its rate can be shown; nothing was left of an earlier
            run.
        url: the URL of the result if it is in a store instead of in ``out``.
    """
    documents = manifest.documents
    dropped = drops_in_words(documents["dropped"])
    rows = {
        "documents": f"{documents['read']:,} read, {documents['written']:,} written",
        "dropped": dropped or "none",
    }
    # A detected encoding can be wrong, so the reader should check such documents.
    found = [
        f"{source['name']}: {count:,} in {encoding}"
        for source in manifest.sources
        for encoding, count in source.get("encodings", {}).items()
    ]
    if found:
        rows["decoded"] = f"{', '.join(found)} (encoding detected; check some of these documents)"
    # The encoding of a book, which is a file, could not be detected; other text must be UTF-8.
    lost = [
        f"{source['name']}: {count:,}"
        for source in manifest.sources
        if (count := source["dropped"].get(BAD_UTF8))
    ]
    if lost:
        rows["not decoded"] = f"{', '.join(lost)} ({_TO_DECODE}; --keep-dropped lists them)"
    for name, split in manifest.splits.items():
        rows[name] = (
            f"{split.documents:,} documents, {split.sentences:,} sentences, "
            f"{split.tokens:,} tokens in {words.count(len(split.shards), 'shard')}"
        )
    for instance in manifest.instances:
        count = sum(file["rows"] for file in instance["files"])
        files = words.count(len(instance["files"]), "file")
        rows[f"rows {instance['sequence_length']}"] = f"{count:,} in {files}"
    rows["vocabulary"] = (
        f"{manifest.tokenizer.vocab_size:,} tokens, {tokenizer_words(manifest.tokenizer)}"
    )
    rows["time"] = f"{seconds:.1f} s"
    if whole:
        size = sum(file["bytes"] for source in manifest.sources for file in source["files"])
        rows["time"] += (
            f": {size / 1e6 / seconds:,.1f} MB/s, {documents['read'] / seconds:,.0f} documents/s"
        )
    if url:
        rows["look at"] = masked(join(url, REPORT_NAME))
    else:
        rows["look at"] = f"{out / REPORT_NAME}, or: bertds prep show {words.shell_word(out)}"
    progress.say(f"prepared {url or out}")
    progress.summary(rows)
