"""Sources of documents: a small reader for each kind of file, and how files are cut into units.

``formats.py`` detects the format of a file, and ``blocks.py`` reads any range of it. The readers
are ``wikipedia.py``, ``extracted.py``, ``books.py``, ``text.py``, ``records.py`` and ``hub.py``.

Read first: ``text.py``, the shortest reader.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bertds.display import words
from bertds.errors import ConfigError, DataError
from bertds.system.storage import is_url, join, list_files
from bertds.system.stored_path import FilePath, StoredPath, file_path
from data_prep import progress
from data_prep.document import Document, Limits, SourceFile, Unit
from data_prep.sources import blocks
from data_prep.sources.books import read_book
from data_prep.sources.extracted import (
    OPENING,
    is_extracted_json,
    read_extracted,
    read_extracted_json,
)
from data_prep.sources.hub import hub_units, read_hub, row_group_units
from data_prep.sources.multistream import (
    cuts,
    index_beside,
    index_name,
    is_index,
    stream_offsets,
)
from data_prep.sources.reading import file_facts, open_binary, unreadable
from data_prep.sources.records import (
    check_jsonl,
    parquet_file,
    parquet_row_groups,
    read_jsonl,
    read_parquet,
    read_pubmed,
)
from data_prep.sources.text import read_text
from data_prep.sources.wikipedia import page_batches, read_dump, sniff_dump

# If several sources hold a document, it is counted for the first of them in this order. Datasets
# of --hf have names of their own and come last.
SOURCE_KINDS = ("wiki", "books", "text", "jsonl", "parquet", "pubmed")

READERS: dict[str, Callable[[Unit], Iterator[Document]]] = {
    "dump": read_dump,
    "extracted": read_extracted,
    "extracted-json": read_extracted_json,
    "book": read_book,
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "pubmed": read_pubmed,
    "hf": read_hub,
}

_MOST_SOURCES = 255
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
# The files of a folder that each option reads; "" means all. A file that the user names is read
# whatever its name.
_ENDINGS = {
    "wiki": ("",),
    "books": (".txt", ".text"),
    "text": ("",),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "pubmed": (".json",),
}
_WIKI_JSON = re.compile(r"wiki_\d+(?:\.bz2|\.gz)?", re.IGNORECASE)
"""Names of WikiExtractor's files, which ``--json`` does not change."""


def source_order(files: Iterable[SourceFile]) -> tuple[str, ...]:
    """Return the names of the sources in their order.

    Raises:
        ConfigError: there are more than 255, which is all that the parts can number.
    """
    names = {file.source for file in files}
    kinds = [kind for kind in SOURCE_KINDS if kind in names]
    order = (*kinds, *sorted(names.difference(kinds)))
    if len(order) > _MOST_SOURCES:
        raise ConfigError(f"{len(order)} sources; allowed: at most {_MOST_SOURCES}")
    return order


def file_state(unit: Unit) -> list[int]:
    """Return size and time of the unit's file, to detect a change; [] for a pinned Hub revision."""
    if unit.reader == "hf" and unit.options[-1]:
        return []
    facts = file_facts(unit.path)
    return [facts.st_size, facts.st_mtime_ns]


def find_files(
    kind: str,
    paths: Iterable[str | Path],
    options: tuple[str, ...],
    indexes: Iterable[str | Path] = (),
    limits: Limits = blocks.DEFAULT_LIMITS,
    out: Path | None = None,
) -> list[SourceFile]:
    """Return the input files below the given files and folders, in the order of their names.

    Args:
        kind: the option that named them.
        paths: files and folders.
        options: options of their reader.
        indexes: indexes of multistream dumps; those next to their dumps are found anyway.
        limits: bounds on the unpacked size of a file and on the size of a document.
        out: the folder of the result, which is not read if it is in one of the folders.

    Raises:
        DataError: a path is missing or unreadable, holds no such file, or is of another kind.
    """
    files: list[tuple[FilePath, str]] = []
    for given in paths:
        if is_url(given):
            files += _in_store(kind, str(given))
            continue
        local = Path(given)
        try:
            mode = local.stat().st_mode
        except FileNotFoundError:
            raise DataError(f"{local}: no such file or folder (for --{kind})") from None
        except OSError as error:
            raise unreadable(local, error) from error
        if stat.S_ISDIR(mode):
            files += [(p, p.relative_to(local).as_posix()) for p in _in_folder(kind, local, out)]
        elif not stat.S_ISREG(mode):
            raise DataError(f"{local}: is neither a file nor a folder (for --{kind})")
        elif kind == "wiki" and is_index(local):
            indexes = [*indexes, given]  # a pattern such as enwiki-* names it too
        else:
            files.append((local, local.name))
    files.sort(key=lambda pair: (pair[1], str(pair[0])))
    # A file that is named twice (by a folder and a pattern, or by a link) is read once.
    once = {path.resolve(): (path, name) for path, name in reversed(files)}
    if len(once) < len(files):
        again = words.count(len(files) - len(once), "file is", "files are")
        progress.say(f"{again} given more than once for --{kind}, and read once")
        files = [*reversed(once.values())]
    found_files = []
    extracted: set[FilePath] = set()
    for path, name in files:
        # Extracted articles are thousands of small files, and to inspect one costs as much as to
        # read it. Only the first file of a folder is inspected; the reader checks the others.
        known = "extracted" if path.parent in extracted else ""
        file = source_file(kind, path, as_unicode(name), options, known, limits)
        if file.reader == "extracted":
            extracted.add(path.parent)
        found_files.append(file)
    return with_indexes(found_files, indexes) if kind == "wiki" else found_files


def as_unicode(name: str) -> str:
    """Return a file name that can be written; its bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def with_indexes(files: list[SourceFile], given: Iterable[str | Path]) -> list[SourceFile]:
    """Return the dumps with the indexes that belong to them.

    Raises:
        DataError: an index that the user named belongs to no dump here.
    """
    dumps = [file for file in files if file.reader == "dump"]
    found: dict[FilePath, FilePath] = {}
    # An index next to its dump is optional: if it does not fit, the dump is read without it.
    for file in dumps:
        beside = index_beside(file.path)
        if beside is not None:
            try:
                stream_offsets(beside, file.path)
                found[file.path] = beside
            except DataError as error:
                progress.say(f"{error}; continuing without this index")
    # An index that the user named must fit, by its name or because there is only one dump.
    for name in given:
        path = file_path(str(name))
        if not path.is_file():
            raise DataError(f"{path}: no such file (for --wiki-index)")
        own = [f.path for f in dumps if index_name(f.path) in (path.name, f"{path.name}.bz2")]
        own = own or [f.path for f in dumps if len(dumps) == 1]
        if not own:
            raise DataError(f"{path}: its name does not match any dump (for --wiki-index)")
        stream_offsets(path, own[0])
        found[own[0]] = path
    return [f._replace(streams=str(found[f.path])) if f.path in found else f for f in files]


def _in_folder(kind: str, folder: Path, out: Path | None) -> list[Path]:
    """Return the files of a folder that the option reads, and report the others.

    Raises:
        DataError: there is none.
    """
    found = []
    others: Counter[str] = Counter()
    for path, is_file in _walk(folder, out):
        if not is_file:
            others["broken link" if path.is_symlink() else "special file"] += 1
        elif is_index(path):
            continue
        elif file_facts(path).st_size == 0:
            others["empty"] += 1
        elif _wanted(kind, path):
            found.append(path)
        else:
            others[path.suffix.lower() or path.name] += 1
    left = ", ".join(
        words.count(count, name) if " " in name else f"{count} {name}"
        for name, count in others.most_common(5)
    )
    if not found:
        endings = [ending for ending in _ENDINGS[kind] if ending]
        wanted = f"{'|'.join(endings)} file" if endings else "file"
        held = f"; it contains {left}" if left else ""
        raise DataError(f"{folder}: no {wanted} in this folder (for --{kind}){held}")
    if left:
        progress.say(f"{folder}: ignored by --{kind}: {left}")
    return sorted(found)


def _in_store(kind: str, url: str) -> list[tuple[FilePath, str]]:
    """Return the file of a URL, or the files below it that the option reads, with their names.

    Raises:
        DataError: there is none.
    """
    file = StoredPath(url)
    # A web server has no folders that can be listed.
    if url.startswith("http") or file.is_file():
        if not file.is_file():
            raise DataError(f"{file}: no such file (for --{kind})")
        return [(file, file.name)]
    found: list[tuple[FilePath, str]] = []
    for name, size in sorted(list_files(url).items()):
        path = StoredPath(join(url, name))
        hidden = any(part.startswith(".") for part in name.split("/"))
        if size and not hidden and not is_index(path) and _wanted(kind, path):
            found.append((path, name))
    if not found:
        raise DataError(f"{file}: no such file or folder with files (for --{kind})")
    return found


def _walk(folder: Path, out: Path | None) -> Iterator[tuple[Path, bool]]:
    """Yield the contents of a folder and its subfolders, without hidden ones and without ``out``.

    A linked folder is visited only once.

    Yields:
        A path that is not a folder; whether it is a file (it may be a broken link, or a pipe).
    """
    seen = set() if out is None else {os.path.realpath(out)}
    waiting = [folder]
    linked: list[Path] = []
    while waiting or linked:
        current = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(current, error) from error
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_symlink() and os.path.isdir(path):
                # Links come last, so that a file below the folder keeps its own name.
                linked.append(path)
            else:
                yield path, os.path.isfile(path)  # DirEntry raises an error for a loop of links


def _wanted(kind: str, path: FilePath) -> bool:
    name = path.name.lower()
    if kind == "jsonl" and _WIKI_JSON.fullmatch(name):
        return True
    return any(name.endswith(e + packed) for e in _ENDINGS[kind] for packed in _PACKED)


def source_file(
    kind: str,
    path: FilePath,
    name: str,
    options: tuple[str, ...],
    known_reader: str = "",
    limits: Limits = blocks.DEFAULT_LIMITS,
) -> SourceFile:
    """Inspect a file and choose its reader, unless that is known.

    Raises:
        DataError: the file is empty, unreadable, or not of the kind that its option expects.
    """
    reader = {"books": "book", "wiki": "dump"}.get(kind, kind)
    size = file_facts(path).st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    if known_reader:
        reader = known_reader
        open_binary(path).close()  # an unreadable file must be reported now
    elif kind == "wiki":
        # --wiki accepts three formats: a dump, extracted articles, and extracted articles as JSON.
        head = next(blocks.whole_blocks(path), (b"", True))[0]
        if OPENING in head[: 64 << 10]:
            reader = "extracted"
        elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            reader = "extracted-json"
            check_jsonl(path, "text", limits)
        else:
            options += sniff_dump(path)
    elif kind == "jsonl":
        check_jsonl(path, options[0], limits)
        # WikiExtractor's --json output may also be given as --jsonl; its titles need the other
        # reader.
        if options[0] == "text" and _WIKI_JSON.fullmatch(path.name) and is_extracted_json(path):
            reader, options = "extracted-json", ()
    elif kind != "parquet":
        blocks.check_is_text(path)
    return SourceFile(kind, reader, path.resolve(), name, size, options, limits=limits)


def is_read_by_one(file: SourceFile) -> bool:
    """Return whether only one process can read the file: a dump in one compressed stream."""
    kind = "" if file.reader != "dump" or file.streams else blocks.compression(file.path)
    return kind not in ("", "bz2") or _single_bz2(file, kind)


def file_units(file: SourceFile, unit_bytes: int) -> Iterator[Unit]:
    """Cut a file into units of about ``unit_bytes`` of uncompressed text."""
    kind = "" if file.reader in ("parquet", "hf") else blocks.compression(file.path)
    whole = Unit(
        file.source, file.reader, str(file.path), 0, 0, file.bytes, file.bytes, file.options
    )._replace(limits=file.limits)
    # Parquet can be cut at row groups, a multistream dump at the streams of its index.
    if file.reader == "hf":
        yield from hub_units(file, whole, unit_bytes)
    elif file.reader == "parquet":
        sizes = parquet_row_groups(parquet_file(file.path), file.path, file.options[0], file.limits)
        yield from row_group_units(whole, sizes, unit_bytes)
    elif file.streams:
        offsets = stream_offsets(file_path(file.streams), file.path)
        for number, (start, end) in enumerate(cuts(offsets, file.bytes, max(1, unit_bytes // 4))):
            yield whole._replace(number=number, start=start, end=end, size=end - start)
    # A single compressed stream cannot be entered in the middle: the parent reads the pages.
    elif is_read_by_one(file):
        ratio = 4 if kind else 1  # the progress bar counts bytes of the file
        batches = page_batches(file.path, min(unit_bytes, 8 << 20), file.limits)
        for number, pages in enumerate(batches):
            size = sum(map(len, pages)) // ratio
            yield whole._replace(number=number, size=size, records=pages)
    elif file.reader in ("book", "pubmed") or (kind and file.reader != "dump"):
        yield whole
    else:
        # bzip2 text unpacks to about 4 times its size.
        step = max(1, unit_bytes // 4) if kind == "bz2" else unit_bytes
        for number, start in enumerate(range(0, file.bytes, step)):
            end = min(start + step, file.bytes)
            yield whole._replace(number=number, start=start, end=end, size=end - start)


def _single_bz2(file: SourceFile, kind: str) -> bool:
    return kind == "bz2" and not blocks.is_multistream(file.path)
