"""What a source yields: documents, and pieces of work that can be read apart from each other."""

from __future__ import annotations

from typing import NamedTuple

from bertds.system.stored_path import FilePath, file_path

# Reasons for which a document is not written. Sources and stages use these; quality.py and
# repetition.py in data_prep/selection have names for their rules.
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
    """One article, book or abstract; or the reason why there is none."""

    text: str
    """Clean paragraphs, one a line. Empty when dropped."""
    dropped: str = ""
    """Why the document is left out; empty when it is kept."""
    title: str = ""
    """What a person would call it, where the source says: a page's title, a book's file."""
    encoding: str = ""
    """What it was decoded from, where that was detected."""


class Limits(NamedTuple):
    """What reading may come to: a small file must not fill the memory or run for days."""

    document_bytes: int = 256 << 20
    """The largest document (``--max-document-mb``). Shakespeare's works have 5.5 MB."""
    unpack_ratio: int = 250
    """Bytes unpacked per byte of a compressed file (``--max-unpack-ratio``): text comes to 3 to 8,
    repetitive JSON to 50; a bomb to 1,000 (gzip) and 40,000 (bzip2)."""


class Unit(NamedTuple):
    """A piece of work of bounded size: part of one file, or records that the parent has read."""

    source: str
    """The option that named the file: wiki, books, text, ..."""
    reader: str
    """The function of :data:`data_prep.sources.READERS` that reads it."""
    file: str
    number: int
    """Position of this unit in its file."""
    start: int
    end: int
    """Bytes of the file (compressed ones where it is compressed) that the unit owns."""
    size: int
    """Bytes of work, for the progress bar."""
    options: tuple[str, ...] = ()
    records: tuple[bytes, ...] | None = None
    """The contents, when only one process can read the file (a single bzip2 or gzip stream)."""
    limits: Limits = Limits()

    @property
    def path(self) -> FilePath:
        """The file as a path, or in its store."""
        return file_path(self.file)


class SourceFile(NamedTuple):
    """One input file, as the manifest names it."""

    source: str
    reader: str
    path: FilePath
    name: str
    """Name below the folder that the user gave; paths of the machine stay out of the manifest."""
    bytes: int
    options: tuple[str, ...] = ()
    licence: str = ""
    """What the source itself says about its licence."""
    streams: str = ""
    """Of a multistream dump: the file that names its streams."""
    limits: Limits = Limits()
