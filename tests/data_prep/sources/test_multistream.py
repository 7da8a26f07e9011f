from __future__ import annotations

import bz2
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import DataError
from data_prep.build_wiki_books import main
from data_prep.sources import READERS, file_units, find_files, is_read_by_one
from data_prep.sources.multistream import stream_offsets

NAME = "xxwiki-20240101-pages-articles-multistream{}.xml{}.bz2"
INDEX = "xxwiki-20240101-pages-articles-multistream-index{}.txt{}.bz2"


def published(
    folder: Path, pages: list[str], made: SimpleNamespace, part: str = "", ids: str = ""
) -> Path:
    """Write a dump and its index as Wikimedia does: head, streams of 7 pages, closing stream."""
    whole = made.dump(pages).decode()
    head, end = whole[: whole.index("  <page>")], "</mediawiki>\n"
    data, lines = bz2.compress(head.encode()), []
    for first in range(0, len(pages), 7):
        for number, page in enumerate(pages[first : first + 7], first):
            title = page[page.index("<title>") + 7 : page.index("</title>")]
            lines.append(f"{len(data)}:{number + 1}:{title}: a part\n")
        data += bz2.compress("".join(pages[first : first + 7]).encode())
    path = folder / NAME.format(part, ids)
    path.write_bytes(data + bz2.compress(end.encode()))
    (folder / INDEX.format(part, ids)).write_bytes(bz2.compress("".join(lines).encode()))
    return path


@pytest.fixture
def pages(made: SimpleNamespace) -> list[str]:
    rng = random.Random(9)
    return [made.page(f"A{i}", f"Number {i}. {made.article(rng)}") for i in range(40)]


def read(file, unit_bytes: int) -> list:  # type: ignore[no-untyped-def]
    return [d for unit in file_units(file, unit_bytes) for d in READERS[unit.reader](unit)]


@pytest.mark.parametrize(("part", "ids"), [("", ""), ("3", "-p10p50")])
def test_a_dump_is_cut_at_the_streams_of_the_index_next_to_it(
    tmp_path: Path, pages: list[str], made: SimpleNamespace, part: str, ids: str
) -> None:
    path = published(tmp_path, pages, made, part, ids)
    (file,) = find_files("wiki", [str(tmp_path)], ())  # the index is no dump
    assert Path(file.streams).name == INDEX.format(part, ids) and not is_read_by_one(file)
    whole = read(file._replace(streams=""), 1 << 20)
    assert [d.title for d in whole] == [f"A{i}" for i in range(40)]
    for unit_bytes in (4, 3000, 1 << 20):
        units = list(file_units(file, unit_bytes))
        # Each unit begins with a stream: what bzip2 itself reads from there is whole pages.
        for unit in units[1:]:
            plain = bz2.BZ2Decompressor().decompress(path.read_bytes()[unit.start :])
            assert plain.startswith((b"  <page>", b"</mediawiki>"))
        assert units[0].start == 0 and units[-1].end == path.stat().st_size
        assert all(a.end == b.start for a, b in pairwise(units))
        assert read(file, unit_bytes) == whole
    assert len(list(file_units(file, 4))) == 1 + len(range(0, 40, 7))


def test_with_or_without_the_index_the_result_is_the_same(
    tmp_path: Path, pages: list[str], made: SimpleNamespace, vocab: Path
) -> None:
    path = published(tmp_path, pages, made)
    trees = []
    for number, workers in enumerate(("1", "2")):
        out = tmp_path / f"out{number}"
        sources = ["--wiki", str(path)] if number else ["--wiki", *map(str, tmp_path.glob("xx*"))]
        assert (
            main(
                [
                    *sources,
                    "--out",
                    str(out),
                    "--vocab",
                    str(vocab),
                    "--workers",
                    workers,
                    "--validation-fraction",
                    "0.1",
                ]
            )
            == 0
        )
        trees.append(made.tree(out))
        (tmp_path / INDEX.format("", "")).unlink(missing_ok=True)
    assert trees[0] == trees[1]


def test_an_index_of_another_dump_is_not_used(
    tmp_path: Path, pages: list[str], made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published(tmp_path, pages, made)
    index = tmp_path / INDEX.format("", "")
    good = bz2.decompress(index.read_bytes())
    for wrong, message in (
        (good.replace(b":1:", b":1:", 1).replace(good[:3], b"123"), "no stream at byte"),
        (b"".join(b"9" + line for line in good.splitlines(keepends=True)), "offsets up to"),
        (b"<html>not found</html>", "expected offset:page id:title, found '<html>"),
    ):
        index.write_bytes(bz2.compress(wrong))
        stream_offsets.cache_clear()
        (file,) = find_files("wiki", [str(path)], ())
        error = capsys.readouterr().err
        assert file.streams == "" and message in error and "continuing without this index" in error
        with pytest.raises(DataError, match="multistream-index"):
            find_files("wiki", [str(path)], (), [str(index)])
    with pytest.raises(DataError, match="no such file"):
        find_files("wiki", [str(path)], (), [str(tmp_path / "gone")])
    elsewhere = tmp_path / "my-index"
    elsewhere.write_bytes(good)  # of another name, unpacked: the only dump's
    stream_offsets.cache_clear()
    (file,) = find_files("wiki", [str(path)], (), [str(elsewhere)])
    assert file.streams == str(elsewhere)
