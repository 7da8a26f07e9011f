"""Where documents come from: a small reader per kind of file, and how files are cut into units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bertds.errors import DataError
from data_prep.document import Document, SourceFile, Unit
from data_prep.sources import blocks
from data_prep.sources.books import read_book
from data_prep.sources.extracted import OPENING, read_extracted
from data_prep.sources.records import parquet_row_groups, read_jsonl, read_parquet, read_pubmed
from data_prep.sources.text import read_text
from data_prep.sources.wikipedia import page_batches, read_dump, sniff_dump

# In this order a document that several sources hold is counted as the first one's.
SOURCE_KINDS = ("wiki", "books", "text", "jsonl", "parquet", "pubmed", "hf")

READERS: dict[str, Callable[[Unit], Iterator[Document]]] = {
    "dump": read_dump,
    "extracted": read_extracted,
    "book": read_book,
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "pubmed": read_pubmed,
}

_SUFFIXES = {
    "wiki": None,
    "books": (".txt", ".txt.gz", ".txt.bz2", ".text"),
    "text": None,
    "jsonl": (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".json.gz"),
    "parquet": (".parquet",),
    "pubmed": (".json", ".json.gz"),
}


def find_files(kind: str, paths: Iterable[str], options: tuple[str, ...]) -> list[SourceFile]:
    """Return the input files below the given files and folders, in the order of their names.

    Raises:
        DataError: a path is missing, unreadable, holds no such file, or is of another kind.
    """
    files = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _wanted(kind, p))
            if not found:
                suffixes = _SUFFIXES[kind]
                wanted = f"{'|'.join(suffixes)} file" if suffixes else "file"
                raise DataError(f"{path}: no {wanted} in this folder (for --{kind})")
            files += [(p, p.relative_to(path).as_posix()) for p in found]
        elif path.is_file():
            files.append((path, path.name))
        else:
            raise DataError(f"{path}: no such file or folder (for --{kind})")
    files.sort(key=lambda pair: (pair[1], str(pair[0])))
    found_files = []
    extracted: set[Path] = set()
    for path, name in files:
        # Extracted articles come as thousands of small files, and to look into each costs as much
        # as reading it: the first of a folder speaks for the others (their reader checks them).
        known = "extracted" if path.parent in extracted else ""
        file = source_file(kind, path, name, options, known)
        if file.reader == "extracted":
            extracted.add(path.parent)
        found_files.append(file)
    return found_files


def _wanted(kind: str, path: Path) -> bool:
    if path.name.startswith(".") or path.stat().st_size == 0:
        return False
    suffixes = _SUFFIXES[kind]
    return suffixes is None or path.name.lower().endswith(suffixes)


def source_file(
    kind: str, path: Path, name: str, options: tuple[str, ...], known_reader: str = ""
) -> SourceFile:
    """Look into a file and choose its reader, unless it is known.

    Raises:
        DataError: the file is empty, unreadable, or not what its option says.
    """
    reader = {"books": "book", "wiki": "dump"}.get(kind, kind)
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    if known_reader:
        reader = known_reader
    elif kind == "wiki":
        head = next(blocks.whole_blocks(path), (b"", True))[0]
        if OPENING in head[: 64 << 10]:
            reader = "extracted"
        else:
            options = sniff_dump(path)
    blocks.open_binary(path).close()
    return SourceFile(kind, reader, path.resolve(), name, size, options)


def is_read_by_one(file: SourceFile) -> bool:
    """Tell whether only one process can read the file: a dump in one compressed stream."""
    kind = "" if file.reader != "dump" else blocks.compression(file.path)
    return kind in ("gz", "zst") or _single_bz2(file, kind)


def file_units(file: SourceFile, unit_bytes: int) -> Iterator[Unit]:
    """Cut a file into units of about ``unit_bytes`` of uncompressed text."""
    kind = "" if file.reader == "parquet" else blocks.compression(file.path)
    whole = Unit(
        file.source, file.reader, str(file.path), 0, 0, file.bytes, file.bytes, file.options
    )
    if file.reader == "parquet":
        for number, size in enumerate(parquet_row_groups(file.path, file.options[0])):
            yield whole._replace(number=number, start=number, size=size)
    elif is_read_by_one(file):
        ratio = 4 if kind else 1  # the progress bar counts bytes of the file
        for number, pages in enumerate(page_batches(file.path, min(unit_bytes, 8 << 20))):
            size = sum(map(len, pages)) // ratio
            yield whole._replace(number=number, size=size, records=pages)
    elif file.reader in ("book", "pubmed") or (kind and file.reader != "dump"):
        yield whole
    else:
        step = max(1, unit_bytes // 4) if kind == "bz2" else unit_bytes
        for number, start in enumerate(range(0, file.bytes, step)):
            end = min(start + step, file.bytes)
            yield whole._replace(number=number, start=start, end=end, size=end - start)


def _single_bz2(file: SourceFile, kind: str) -> bool:
    return kind == "bz2" and not blocks.is_multistream(file.path)
