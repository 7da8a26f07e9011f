"""Detects the format of a file by its first bytes, never by its name.

There are three outcomes: text; text that is decompressed or decoded while it is read (gzip, bzip2,
xz, zstd, UTF-16, UTF-32); or a format that is not text, which is refused by its name.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

HEAD_BYTES = 4096
"""Number of bytes at the beginning of a file that :func:`wrapping` and :func:`not_text` inspect."""

COMPRESSED = ("gz", "bz2", "xz", "zst")
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")

_WRAPPINGS = (
    ("gz", re.compile(rb"\x1f\x8b\x08")),
    ("bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")),
    (
        "xz",
        re.compile(rb"\xfd7zXZ\x00|\x5d\x00\x00[\x00-\xff]{2}(?:\xff{8}|[\x00-\xff]{5}\x00{3})"),
    ),
    ("zst", re.compile(rb"\x28\xb5\x2f\xfd")),
)
# A frame that a zstd reader skips (pzstd and the seekable format begin with one). Its first byte
# varies; its length follows. LZ4 uses the same frames.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_SKIPPABLE_HEADER = 8

_ARCHIVE = "unpack it first"
_NOT_TEXT: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK\x03\x04|PK\x05\x06|PK\x07\x08", "a ZIP archive (or an Office or EPUB file)", _ARCHIVE),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _ARCHIVE),
    (rb"Rar!\x1a\x07", "a RAR archive", _ARCHIVE),
    (rb"!<arch>\n", "an ar archive", _ARCHIVE),
    (rb"07070[127]|\xc7\x71", "a cpio archive", _ARCHIVE),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "LZ4 data", _ARCHIVE),
    (rb"LZIP[\x00-\x01]", "lzip data", _ARCHIVE),
    (rb"\x89LZO\x00", "LZO data", _ARCHIVE),
    (rb"\xff\x06\x00\x00sNaPpY", "Snappy data", _ARCHIVE),
    (rb"\x1f[\x9d\xa0]", "data written by compress (.Z)", _ARCHIVE),
    (rb"\x1f\x8b|\xfd7zXZ", "damaged compressed data", "download it again"),
    (rb"%PDF-", "a PDF file", "extract its text first"),
    (rb"%!PS-Adobe", "a PostScript file", "extract its text first"),
    (rb"\{\\rtf", "an RTF file", "save it as plain text"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file", "save it as plain text"),
    (rb"PAR1", "a Parquet file", "use --parquet for this file"),
    (rb"ARROW1\x00|ORC\x08|Obj\x01", "a file of columns or records", "convert it to Parquet"),
    (rb"\x89HDF\r\n", "an HDF5 file", ""),
    (rb"SQLite format 3\x00", "an SQLite database", ""),
    (rb"\x7fELF|\xca\xfe\xba\xbe|[\xce\xcf]\xfa\xed\xfe|MZ[\x00-\xff]{0,64}\x00", "a program", ""),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\x00|MM\x00\*|AT&TFORM", "a picture or scan", ""),
)
_NOT_TEXT_MAGIC = tuple(
    (re.compile(magic, re.DOTALL), f"{what}; {remedy}" if remedy else what)
    for magic, what, remedy in _NOT_TEXT
)

# After an XML declaration and comments, either the document type or <html> with another tag: a text
# about HTML can begin with a single tag.
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*"
    rb"(?:<!doctype\s+html\b|<html\b[^>]*>\s*(?:<!--.*?-->\s*)*<(?:head|body|meta|title)\b)",
    re.DOTALL | re.IGNORECASE,
)
_HTML_REMEDY = "extract its text first, or download the file again if this is an error page"

_MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16, so UTF-32 comes first
    ("utf-32-le", codecs.BOM_UTF32_LE),
    ("utf-32-be", codecs.BOM_UTF32_BE),
    ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE),
)
# Bytes that are rare in text of any 8-bit or multi-byte encoding. Escape (ISO-2022-JP), form feed
# and the end mark of CP/M do occur in text and are not listed.
_CONTROLS = bytes([*range(0x08), 0x0B, *range(0x0E, 0x1A), *range(0x1C, 0x20), 0x7F])
_FEW_CONTROLS = 4
_CONTROL_SHARE = 0.02
_IDEOGRAPHS, _SYLLABLES = range(0x2E80, 0xA4D0), range(0xAC00, 0xD800)
_WIDE_MARKS = (0x3000, 0x3001, 0x3002, 0xFF0C, 0xFF01, 0xFF1F, 0xFF1A, 0xFF1B)
_IDEOGRAPHIC, _HANGUL = -1, -2
_NO_CHARACTERS = ("Cn", "Co", "Cs", "Cc")


def wrapping(head: bytes) -> str:
    """Return the compression or wide encoding: one of COMPRESSED or WIDE, or "" for plain bytes.

    Args:
        head: the first HEAD_BYTES of the file.
    """
    for name, magic in _WRAPPINGS:
        if magic.match(head):
            return name
    if _SKIPPABLE.match(head):
        return _after_skippable(head)
    return wide_encoding(head)


def _after_skippable(head: bytes) -> str:
    """Return "zst" unless an LZ4 frame follows the skippable frames."""
    at = 0
    while _SKIPPABLE.match(head, at):
        at += _SKIPPABLE_HEADER + int.from_bytes(head[at + 4 : at + 8], "little")
    return "" if head[at : at + 4] == b"\x04\x22\x4d\x18" else "zst"


def wide_encoding(head: bytes) -> str:
    """Return which of WIDE a text is in, by its byte order mark or its zero bytes; "" if none."""
    for name, mark in _MARKS:
        if head.startswith(mark):
            return name
    size = len(head) // 4 * 4
    if size < 8 or not head.count(0, 0, size):
        return ""
    # ASCII letters fill one byte of each character, so the other positions are zero.
    zeros = [head[place:size:4].count(0) / (size // 4) for place in range(4)]
    full = [share > 0.9 for share in zeros]
    if full == [False, False, True, True] or full == [False, True, True, True]:
        return "utf-32-le" if zeros[0] < 0.1 else ""
    if full == [True, True, True, False] or full == [True, True, False, False]:
        return "utf-32-be" if zeros[3] < 0.1 else ""
    # Mostly Latin text in UTF-16 has zeros at every second byte.
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if odd > 0.4 and even < 0.02:
        return "utf-16-le"
    if even > 0.4 and odd < 0.02:
        return "utf-16-be"
    return next((e for e in ("utf-16-le", "utf-16-be") if _is_text_in(head[:size], e)), "")


def _is_text_in(head: bytes, encoding: str) -> bool:
    """Return whether bytes are UTF-16 text in a script other than Latin.

    The letters of such a text belong to one or two scripts (Japanese counts as one), with spaces or
    other marks between them. Numbers, or text in another encoding, would fall into all scripts.
    """
    text = head.decode(encoding, "replace")[:-1]  # the last one may be half of a surrogate pair
    scripts: Counter[int] = Counter()
    marks = 0
    for character in text:
        code = ord(character)
        if code < 0x80:
            if code < 0x20 and character not in "\t\n\r\f\x1a":
                return False
            marks += not character.isalnum()
        elif code in _WIDE_MARKS:
            marks += 1
        elif unicodedata.category(character) in _NO_CHARACTERS:
            return False
        else:
            scripts[
                _IDEOGRAPHIC
                if code in _IDEOGRAPHS
                else _HANGUL
                if code in _SYLLABLES
                else code >> 8
            ] += 1
    # Text has a mark in at least every 80 characters, and nearly all letters in the 3 main blocks.
    letters = scripts.total()
    most = sum(count for _, count in scripts.most_common(3))
    return marks > 0 and letters > 0 and len(text) <= 80 * marks and most >= 0.97 * letters


def not_text(head: bytes) -> str:
    """Return the format of a file that is not text, with the remedy; "" if it may be text.

    Args:
        head: the first HEAD_BYTES of the file, or of its decompressed contents.
    """
    for magic, what in _NOT_TEXT_MAGIC:
        if magic.match(head):
            return what
    if _SKIPPABLE.match(head):
        return f"LZ4 data; {_ARCHIVE}"
    if _is_tar(head):
        return f"a tar archive; {_ARCHIVE}"
    if _is_lone_mark(head):
        return "a lone byte order mark"
    if _HTML.match(_ascii_of(head)):
        return f"an HTML page; {_HTML_REMEDY}"
    if wide_encoding(head):
        return ""
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls >= _FEW_CONTROLS and controls > _CONTROL_SHARE * len(head):
        return "binary data of an unknown format"
    return ""


def _is_lone_mark(head: bytes) -> bool:
    """Return whether a whole file is only a byte order mark, or the mark and white space."""
    marks = (codecs.BOM_UTF8, *(mark for _, mark in _MARKS))
    mark = next((mark for mark in marks if head.startswith(mark)), b"")
    blank = not head[len(mark) :].strip(b"\0 \t\r\n")  # a space in UTF-16 has a zero byte
    return bool(mark) and blank and len(head) < HEAD_BYTES


def _ascii_of(head: bytes) -> bytes:
    """Return the ASCII characters of a text in UTF-8, UTF-16 or UTF-32, without the mark."""
    if encoding := wide_encoding(head):
        return head.decode(encoding, "replace").encode("ascii", "ignore")
    return head.removeprefix(codecs.BOM_UTF8)


def _is_tar(head: bytes) -> bool:
    """Return whether the head is a tar header; the oldest ones have a checksum but no magic."""
    if head[257:262] == b"ustar":
        return True
    if len(head) < 512 or not head[0]:
        return False
    told = head[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{3,7}", told):
        return False
    return sum(head[:148]) + sum(head[156:512]) + 8 * ord(" ") == int(told, 8)


def as_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield blocks of UTF-16 or UTF-32 as UTF-8, without the mark; broken parts become U+FFFD."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    first = True
    for block in blocks:
        text = decoder.decode(block)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text.encode("utf-8", "replace")
    if rest := decoder.decode(b"", True):
        yield rest.encode("utf-8", "replace")
