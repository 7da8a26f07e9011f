from __future__ import annotations

import bz2
import gzip
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import DataError
from data_prep.sources import READERS, file_units, source_file
from data_prep.sources.blocks import is_multistream


def read(path: Path, unit_bytes: int = 1 << 20) -> list:
    file = source_file("wiki", path, path.name, ())
    return [d for unit in file_units(file, unit_bytes) for d in READERS[unit.reader](unit)]


def pages_of(made: SimpleNamespace, count: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    return [made.page(f"A{i}", f"Number {i}. {made.article(rng)}") for i in range(count)]


@pytest.mark.parametrize("unit_bytes", [97, 1000, 4096, 1 << 20])
def test_each_page_is_read_once_however_a_plain_dump_is_cut(
    tmp_path: Path, made: SimpleNamespace, unit_bytes: int
) -> None:
    path = tmp_path / "d.xml"
    path.write_bytes(made.dump(pages_of(made, 25)))
    whole = read(path)
    assert len(whole) == 25 and not any(d.dropped for d in whole)
    assert read(path, unit_bytes) == whole


@pytest.mark.parametrize("streams", [1, 2, 5, 60])
@pytest.mark.parametrize("unit_bytes", [300, 3000, 1 << 20])
def test_each_page_is_read_once_however_streams_and_units_cut_a_bz2(
    tmp_path: Path, made: SimpleNamespace, streams: int, unit_bytes: int
) -> None:
    data = made.dump(pages_of(made, 25))
    plain, packed = tmp_path / "d.xml", tmp_path / "d.xml.bz2"
    plain.write_bytes(data)
    packed.write_bytes(made.multistream(data, streams))
    assert is_multistream(packed) == (streams > 1)
    assert read(packed, unit_bytes) == read(plain)


def test_gzip_and_a_page_longer_than_many_blocks(tmp_path: Path, made: SimpleNamespace) -> None:
    long_page = made.page(
        "Long", "\n\n".join(f"This is sentence number {i}, no more." for i in range(90_000))
    )
    path = tmp_path / "d.xml.gz"
    path.write_bytes(
        gzip.compress(made.dump([*pages_of(made, 2), long_page, *pages_of(made, 2, seed=5)]))
    )
    documents = read(path)
    assert len(documents) == 5
    assert documents[2].text.endswith("number 89999, no more.")


def test_reasons_are_counted(wiki_dump: Path) -> None:
    counts = Counter(d.dropped for d in read(wiki_dump))
    assert counts == {"": 60, "redirect": 10, "namespace": 1, "empty": 1}


def test_old_exports_without_ns_and_redirect_elements(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    siteinfo = (
        '<siteinfo><namespaces><namespace key="0" /><namespace key="1">Diskussion</namespace>'
        "</namespaces></siteinfo>\n"
    )
    text = "A plain article with enough words to be kept. And one more sentence."
    pages = [
        made.page("Diskussion:Berlin", text, namespace=None),
        made.page("Category:Towns", text, namespace=None),
        made.page("Star Trek: Voyager", text, namespace=None),
        made.page("Alt", "#WEITERLEITUNG [[Neu]]", namespace=None),
        made.page("Old", "#redirect [[New]]", namespace=None),
    ]
    path = tmp_path / "old.xml"
    path.write_bytes(made.dump(pages, siteinfo=siteinfo, version="0.3"))
    reasons = [d.dropped for d in read(path)]
    assert reasons == ["namespace", "namespace", "", "redirect", "redirect"]


def test_other_models_invalid_utf8_and_empty_elements(
    tmp_path: Path, made: SimpleNamespace
) -> None:
    good = made.page("Good", "A plain article with enough words to be kept.")
    module = good.replace("<revision>", "<revision><model>Scribunto</model>")
    selfclosed = '<page><title>X</title><ns>0</ns><revision><text bytes="0" /></revision></page>'
    data = made.dump([good, module, selfclosed, good.replace("enough", "ENOUGH")])
    path = tmp_path / "d.xml"
    path.write_bytes(data.replace(b"ENOUGH", b"en\xff\xfeough"))
    assert [d.dropped for d in read(path)] == ["", "not_wikitext", "empty", "bad_utf8"]


def test_the_newest_revision_is_taken(tmp_path: Path, made: SimpleNamespace) -> None:
    two = made.page("A", "The old text of this article is here.").replace(
        "</revision>",
        "</revision><revision><text>The new text of this article is here.</text></revision>",
    )
    path = tmp_path / "d.xml"
    path.write_bytes(made.dump([two]))
    assert [d.text for d in read(path)] == ["The new text of this article is here."]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_plain_dump_is_refused_at_once(
    tmp_path: Path, made: SimpleNamespace, share: float
) -> None:
    data = made.dump(pages_of(made, 25))
    path = tmp_path / "d.xml"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"d\.xml: truncated"):
        source_file("wiki", path, path.name, ())


@pytest.mark.parametrize("streams", [1, 6])
@pytest.mark.parametrize("cut", ["inside", "between"])
def test_a_truncated_bz2_is_refused(
    tmp_path: Path, made: SimpleNamespace, streams: int, cut: str
) -> None:
    path = tmp_path / "d.xml.bz2"
    if cut == "inside":
        data = made.multistream(made.dump(pages_of(made, 40)), streams)
        path.write_bytes(data[: int(0.8 * len(data))])
    else:  # whole streams, but the last part of the XML is not there
        data = made.dump(pages_of(made, 40))
        path.write_bytes(made.multistream(data[: data.rfind(b"<page>")], streams))
    with pytest.raises(DataError, match="truncated"):
        read(path, 2000)


def test_a_damaged_bz2_is_refused(tmp_path: Path, made: SimpleNamespace) -> None:
    data = bytearray(bz2.compress(made.dump(pages_of(made, 200))))
    data[len(data) // 2] ^= 255
    path = tmp_path / "d.xml.bz2"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"d\.xml\.bz2: damaged"):
        read(path)


@pytest.mark.parametrize(
    "data", [b"<html><body>404 Not Found</body></html>", b"\x7fELF" + bytes(100), b"just text\n"]
)
def test_a_file_that_is_not_a_dump_is_refused(
    tmp_path: Path, made: SimpleNamespace, data: bytes
) -> None:
    path = tmp_path / "d.xml"
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"not a MediaWiki dump|not text but a(n HTML page| program)"
    ):
        source_file("wiki", path, path.name, ())


def test_the_real_excerpt(shared_data: Path) -> None:
    (path,) = (shared_data / "wikipedia").glob("enwiki-latest-*")
    documents = read(path)
    counts = Counter(d.dropped for d in documents)
    assert counts == {"": 104, "redirect": 99, "empty": 2, "namespace": 1}
    text = "\n".join(d.text for d in documents if d.text)
    for markup in ("{{", "}}", "[[", "]]", "''", "&amp;", "==", "<ref", "http"):
        assert markup not in text
    assert text.startswith("Anarchism is a political philosophy that advocates self-governed")
