"""The records that task files are read into, and the handling of malformed rows.

A reader never shifts or guesses: a malformed row is reported by file and line. In training data a
few such rows are dropped and counted. In data that is scored or predicted they are refused, because
a missing row would shift every prediction after it.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bertds.errors import DataError, reason_of
from bertds.system.logs import log

MAX_UNPACK_RATIO, FREE_BYTES = 100, 16 << 20
"""Bound on the unpacked size of a gzip file: this multiple of its size, plus an allowance."""
MOST_BAD_SHARE = 0.01
"""A file with a larger share of malformed rows is assumed to be of another format."""
_SHOWN = 5
BYTE_ORDER_MARK = "\ufeff"
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins with UTF-16's
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(slots=True)
class TextRow:
    """One text or pair of texts, to be classified or scored."""

    id: str
    """The ``index`` column, or the row number from 0 if there is none."""
    text: str
    pair: str | None
    label: int | float | None
    """Number of the label, or the score of a regression task; None in test files."""
    line: int
    """Line of the file, from 1."""


@dataclass(slots=True)
class Sentence:
    """One sentence with a tag per word (IOB2)."""

    words: list[str]
    tags: list[str] | None
    line: int
    """Line of the first word."""
    after_document_start: bool = False
    """Whether a ``-DOCSTART-`` line precedes it."""


@dataclass(slots=True)
class Question:
    """One question about one paragraph."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    """Texts and their character offsets; empty for an unanswerable question."""


@dataclass(slots=True)
class BadRows:
    """The malformed rows of one file."""

    file: Path | str
    tolerated: bool
    """True for training data: bad rows are counted and dropped. False: the first one is refused."""
    what: str = "line"
    kept: bool = False
    """Whether such rows are counted but used anyway."""
    rows: list[tuple[int | str, str]] = field(default_factory=list)

    def add(self, place: int | str, reason: str) -> None:
        """Count one malformed row.

        Raises:
            DataError: this file must not have any.
        """
        if not self.tolerated:
            raise DataError(f"{self.file}, {self.what} {place}: {reason}")
        self.rows.append((place, reason))

    def finish(self, good: int) -> None:
        """Report the malformed rows after the whole file was read.

        Raises:
            DataError: no usable row is left, or too many are malformed.
        """
        total = good if self.kept else good + len(self.rows)
        if not self.rows:
            if not good:
                raise DataError(f"{self.file}: no rows")
            return
        place, reason = self.rows[0]
        # One bad row is always tolerated, even in a small file.
        if len(self.rows) > max(1.0, MOST_BAD_SHARE * total):
            raise DataError(
                f"{self.file}: {len(self.rows)} of {total} rows are malformed, the first at "
                f"{self.what} {place}: {reason}"
            )
        shown = "; ".join(f"{self.what} {p}: {r}" for p, r in self.rows[:_SHOWN])
        more = " ..." if len(self.rows) > _SHOWN else ""
        what = "unusual, but kept" if self.kept else "skipped"
        log.warning(
            "%s: %d of %d rows %s: %s%s", self.file, len(self.rows), total, what, shown, more
        )

    def summary(self) -> list[str]:
        """Return one line for each malformed row."""
        return [f"{self.file}, {self.what} {place}: {reason}" for place, reason in self.rows]


def check_cells(where: str, record: dict[str, Any], columns: Iterable[str | None]) -> None:
    """Check that cells of a record are texts or numbers; JSON also has lists and objects.

    Args:
        where: the file and the line, for the message.
        record: column -> cell.
        columns: those to check; None is skipped.

    Raises:
        DataError: one is not; names the place and the column.
    """
    for column in columns:
        if column is not None and not isinstance(
            value := record.get(column, ""), str | int | float
        ):
            raise DataError(
                f"{where}: column {column!r} is {value!r:.60}, which is neither a text nor a number"
            )


def extension(path: Path | str) -> str:
    """Return the extension of a file in lower case, without that of gzip; "" if it has none."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> IO[bytes]:
    """Open a plain or gzip file.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")  # type: ignore
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        DataError: the file cannot be read, unpacks to too much, or is not UTF-8 (names the line).
    """
    try:
        size = path.stat().st_size
        # A few kilobytes of gzip can hold gigabytes of the same letter.
        most = FREE_BYTES + MAX_UNPACK_RATIO * size
        with open_bytes(path) as file:
            data = file.read(most + 1 if _is_gzip(path) else -1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from None
    if _is_gzip(path) and len(data) > most:
        raise DataError(
            f"{path}: unpacks to more than {MAX_UNPACK_RATIO} times its {size:,} bytes; if that "
            "is expected, unpack it first"
        )
    return decoded(data, str(path))


def decoded(data: bytes, name: str) -> str:
    """Return UTF-8 text without its byte order mark.

    Raises:
        DataError: it is not UTF-8 (names the line).
    """
    for mark, encoding in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise DataError(
                f"{name}: is {encoding}, judging by its byte order mark; save it as UTF-8"
            )
    if data == codecs.BOM_UTF8:
        raise DataError(f"{name}: contains only a byte order mark")
    start = data[:1000]
    if 4 * start.count(0) > len(start):  # Latin letters in UTF-16 are valid UTF-8
        raise DataError(f"{name}: is UTF-16, judging by its zero bytes; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8 (byte {data[error.start]:#04x})") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end).

    Only a line feed ends a line: texts contain characters (U+0085, U+2028, ...) at which
    ``str.splitlines`` would cut a row in two.
    """
    yield from numbered_lines(read_text(path))


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text, as :func:`lines_of` does."""
    if text.endswith("\n"):
        text = text[:-1]
    if text:
        for number, line in enumerate(text.split("\n"), start=1):
            yield number, line.removesuffix("\r")


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of ``names`` that exists in ``folder``, plain or gzipped; None if none."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None
