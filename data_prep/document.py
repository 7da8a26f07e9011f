"""The output of a source: documents, and units of work that can be read independently."""

from __future__ import annotations

from typing import NamedTuple

from bertds.system.stored_path import FilePath, file_path

# Reasons for which a document is dropped. Sources and stages use these; quality.py and
# repetition.py in data_prep/selection name their own rules.
REDIRECT = "redirect"
NAMESPACE = "namespace"
NOT_TEXT = "not_wikitext"
EMPTY = "empty"
TOO_SHORT = "too_short"
BAD_UTF8 = "bad_utf8"
MALFORMED = "malformed"
NO_TEXT_KEY = "no_text_key"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
TOO_LONG = "too_long"
LANGUAGE = "language"
CONTAMINATED = "contaminated"
LEFT_OUT = "left_out_by_mix"


class Document(NamedTuple):
    """One article, book or abstract; or the reason why it is dropped."""

    text: str
    """Clean paragraphs, one in a line. Empty if dropped."""
    dropped: str = ""
    """Why the document is dropped; empty if it is kept."""
    title: str = ""
    """Its name, if the source has one: the title of a page, the file name of a book."""
    encoding: str = ""
    """The encoding of its source, if that had to be detected."""


class Limits(NamedTuple):
    """Bounds on reading: a small file must not fill the memory or take days."""

    document_bytes: int = 256 << 20
    """The largest document (``--max-document-mb``). Shakespeare's works have 5.5 MB."""
    unpack_ratio: int = 250
    """Bytes unpacked per byte of a compressed file (``--max-unpack-ratio``). Text has 3 to 8,
    repetitive JSON up to 50; a decompression bomb has 1,000 (gzip) to 40,000 (bzip2)."""


class Unit(NamedTuple):
    """A piece of work of bounded size: part of one file, or records that the parent read."""

    source: str
    """The option that named the file: wiki, books, text, ..."""
    reader: str
    """The function of :data:`data_prep.sources.READERS` that reads it."""
    file: str
    number: int
    """Index of this unit in its file."""
    start: int
    end: int
    """Byte range that the unit owns, in the file as it is stored; of Parquet, row groups."""
    size: int
    """Bytes of work, for the progress bar."""
    options: tuple[str, ...] = ()
    records: tuple[bytes, ...] | None = None
    """The contents, if only one process can read the file (a single bzip2 or gzip stream)."""
    limits: Limits = Limits()

    @property
    def path(self) -> FilePath:
        """The file as a local path, or as an object in its store."""
        return file_path(self.file)


class SourceFile(NamedTuple):
    """One input file, as the manifest names it."""

    source: str
    reader: str
    path: FilePath
    name: str
    """Path below the folder that the user gave; the manifest must not show paths of the machine."""
    bytes: int
    options: tuple[str, ...] = ()
    licence: str = ""
    """The licence that the source itself states."""
    streams: str = ""
    """The index of a multistream dump; "" if there is none."""
    limits: Limits = Limits()

    def how_text_is_found(self) -> dict[str, str]:
        """Return the options that decide which documents the file has, as the manifest has them."""
        if self.reader == "text":
            return {"text_layout": self.options[0]}
        return {"text_key": self.options[0]} if self.reader in ("jsonl", "parquet", "hf") else {}
