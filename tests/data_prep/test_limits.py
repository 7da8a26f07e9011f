"""Small files that unpack to very much, or to one document without an end."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bertds.cli import main
from bertds.errors import DataError
from data_prep.document import Limits
from data_prep.sources import READERS, blocks, file_units, find_files
from data_prep.sources.limits import FREE_BYTES

MB = 1 << 20


def zst(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    packed: bytes = pyarrow.compress(data, "zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zst,
    "xz": lambda data: lzma.compress(data, preset=0),
}
HEADS = {
    "books": b"",
    "text": b"",
    "jsonl": b'{"text": "',
    "pubmed": b'{"a": "',
    "wiki": b"<mediawiki>\n<page>",
}


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """For each packer what 40 MB of one letter come to: 20 to 60 KB, or some hundred bytes."""
    return {name: pack(b"a" * (40 * MB)) for name, pack in PACKERS.items()}


def read(kind: str, path: Path, limits: Limits) -> int:
    options = {"text": ("blank-line",), "jsonl": ("text",)}.get(kind, ())
    count = 0
    for file in find_files(kind, [str(path)], options, (), limits):
        for unit in file_units(file, 64 * MB):
            count += sum(1 for _ in READERS[unit.reader](unit))
    return count


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", ["books", "text", "jsonl", "pubmed"])
def test_a_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, bombs, kind: str, packer: str
) -> None:
    name = {"jsonl": "a.jsonl", "pubmed": "a.json"}.get(kind, "a.txt")
    path = tmp_path / f"{name}.{packer}"
    path.write_bytes(bombs[packer])
    if kind in ("jsonl", "pubmed"):  # the packers' streams may follow one another
        path.write_bytes(PACKERS[packer](HEADS[kind]) + bombs[packer])
    tracemalloc.start()
    with pytest.raises(
        DataError,
        match=r"unpacks to more than 20 times its [\d,]+ bytes; if that "
        r"is expected, raise --max-unpack-ratio",
    ):
        read(kind, path, Limits(unpack_ratio=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * FREE_BYTES + 12 * MB


@pytest.mark.parametrize("kind", ["books", "text", "jsonl", "wiki"])
@pytest.mark.parametrize("packer", ["", "gz", "bz2"])
def test_a_document_without_an_end_is_refused(tmp_path: Path, kind: str, packer: str) -> None:
    content = HEADS[kind] + (b"a b c d e f\n" if kind in ("books", "text") else b"abc ") * (
        130_000 if kind in ("books", "text") else 300_000
    )
    if kind == "jsonl" and not packer:
        pytest.skip("a plain file is as large as its lines")
    path = tmp_path / f"a.{'jsonl' if kind == 'jsonl' else 'xml' if kind == 'wiki' else 'txt'}"
    path.write_bytes(PACKERS[packer](content) if packer else content + b"</mediawiki>")
    with pytest.raises(
        DataError,
        match=r"a document of more than 1 MB; if that is expected, raise "
        r"--max-document-mb",
    ):
        read(kind, path, Limits(document_bytes=MB, unpack_ratio=10_000))


def test_ordinary_text_is_far_from_the_bounds(tmp_path: Path) -> None:
    lines = b"".join(
        b'{"text": "line %d of many lines, all alike", "n": 0}\n' % n for n in range(20_000)
    )
    for name, pack in PACKERS.items():
        path = tmp_path / f"a.jsonl.{name}"
        path.write_bytes(pack(lines))
        assert read("jsonl", path, Limits()) == 20_000


def test_the_options_reach_the_readers(tmp_path: Path, tiny_vocab: Path, capsys) -> None:
    path, out = tmp_path / "a.txt.gz", tmp_path / "out"
    path.write_bytes(gzip.compress(b"w01 w02 w03 w04 w05 w06 w07 w08.\n" * 600_000))
    command = ["prep", "--text", str(path), "--vocab", str(tiny_vocab), "--out", str(out)]
    command += ["--workers", "1", "--validation-fraction", "0"]
    for option, value, said in (
        ("--max-document-mb", "1", "more than 1 MB"),
        ("--max-unpack-ratio", "2", "more than 2 times"),
        ("--max-unpack-ratio", "0", "--max-unpack-ratio 0: allowed: 1 to 1000000"),
    ):
        assert main([*command, option, value]) == 2
        assert said in capsys.readouterr().err


class Bytes(bytes):
    """Counts the bytes that are copied when it is put together with others."""

    copied = 0

    def __add__(self, other: bytes) -> bytes:
        Bytes.copied += len(self) + len(other)
        return Bytes(super().__add__(other))

    def __radd__(self, other: bytes) -> bytes:
        Bytes.copied += len(self) + len(other)
        return Bytes(bytes(other) + bytes(self))

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return Bytes(found) if isinstance(found, bytes) else found


def test_an_unclosed_page_takes_time_linear_in_its_length() -> None:
    """Each block is looked at once: twice the length is twice the work, not four times."""

    def work(count: int) -> int:
        Bytes.copied = 0
        parts = [Bytes(b"<page>" + b"x" * 994), *[Bytes(b"x" * 1000)] * count]
        reader = blocks.records(((p, True) for p in parts), b"<page>", b"</page>", Path("f"))
        with pytest.raises(DataError, match="ends inside a record"):
            next(reader)
        return Bytes.copied

    small, large = work(100), work(200)
    assert small > 0 and large < 2.2 * small


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_records_do_not_depend_on_the_blocks(size: int) -> None:
    data = b"x<p>one</p>yy<p>two</p><p>" + b"z" * 50 + b"</p></end>"
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    for owned in range(len(parts) + 1):
        both = ((part, number < owned) for number, part in enumerate(parts))
        found = list(blocks.records(both, b"<p>", b"</p>", Path("f")))
        starts = [2 - 1, 13, 23]
        expected = [data[s : data.index(b"</p>", s) + 4] for s in starts if s < owned * size]
        assert found == expected, owned


def test_several_xz_streams_with_padding_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(b"one ") + b"\0" * 8 + lzma.compress(b"two"))
    assert b"".join(block for block, _ in blocks.whole_blocks(path)) == b"one two"
    path.write_bytes(lzma.compress(b"one " * 1000)[:-9])
    with pytest.raises(DataError, match="truncated"):
        list(blocks.whole_blocks(path))


def test_an_xz_file_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.lzma"
    packed = bytearray(lzma.compress(b"text " * 100, format=lzma.FORMAT_ALONE))
    packed[1:5] = (0xC0000000).to_bytes(4, "little")  # the dictionary: 3 GB
    path.write_bytes(packed)
    with pytest.raises(DataError, match="damaged"):
        list(blocks.whole_blocks(path))


def test_a_parquet_dictionary_that_is_named_by_many_rows_is_refused(tmp_path: Path) -> None:
    """One text of a megabyte and an index per row: a small file, and 4 GB of text."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    text = ("many words. " * (MB // 12))[:MB]
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 4096, pyarrow.int32()), pyarrow.array([text])
    )
    table = pyarrow.table({"text": column})
    parquet.write_table(
        table, path, use_dictionary=True, dictionary_pagesize_limit=4 * MB, row_group_size=4096
    )
    assert path.stat().st_size < MB
    files = find_files("parquet", [str(path)], ("text",), (), Limits())
    (unit,) = [unit for file in files for unit in file_units(file, 64 * MB)]
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.parquet: unpacks to more than 250 times its"):
            for _ in READERS[unit.reader](unit):
                pass
        assert tracemalloc.get_traced_memory()[1] < 100 * MB
    finally:
        tracemalloc.stop()
    assert pyarrow.default_memory_pool().max_memory() < 100 * MB
