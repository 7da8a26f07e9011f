"""Errors of the disk while a source is read."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import BertdsError, DataError
from bertds.system.fault_points import injected
from data_prep.build_wiki_books import main
from data_prep.sources import READERS, file_units, find_files
from data_prep.stages.part_files import open_part
from tests.support.read_sources import OPTIONS, read


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def streams(data: bytes) -> bytes:
    return bz2.compress(data[: len(data) // 2]) + bz2.compress(data[len(data) // 2 :])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "bz2 of two streams": streams,
    "xz": lzma.compress,
    "zst": zstd,
    "utf-16": lambda data: data.decode().encode("utf-16"),
}


def failing_from(passing: int, number: int) -> Callable[[], None]:
    """Return what fails at the n-th read, counted from 1, and at all later ones."""
    left = passing

    def fail() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(number, os.strerror(number))

    return fail


def contents(kind: str, made: SimpleNamespace) -> bytes:
    rng = random.Random(1)
    if kind == "wiki":
        pages: bytes = made.dump([made.page(f"P{i}", made.article(rng)) for i in range(99)])
        return pages
    if kind == "jsonl":
        return b"".join(b'{"text": "%s"}\n' % made.sentence(rng).encode() for _ in range(999))
    if kind == "pubmed":
        return json.dumps({str(i): made.sentence(rng) for i in range(999)}).encode()
    return "\n\n".join(made.sentence(rng) for _ in range(999)).encode()


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", ["wiki", "books", "text", "jsonl", "pubmed"])
def test_a_disk_error_is_not_reported_as_damage(
    tmp_path: Path, kind: str, packing: str, made: SimpleNamespace
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(PACKERS[packing](contents(kind, made)))
    reads = 0

    def count() -> None:
        nonlocal reads
        reads += 1

    with injected("prep.read", count):
        assert len(read(kind, path)) > 0
    assert reads > 1
    for passing in range(1, reads + 1):  # whatever is read then: the head, an index, the text
        broken = injected("prep.read", failing_from(passing, errno.EIO))
        with broken, pytest.raises(BertdsError) as caught:
            read(kind, path)
        # Not the user's mistake: the same command may succeed later.
        assert caught.value.exit_code == 1
        assert str(caught.value) == f"{path}: cannot be read ({os.strerror(errno.EIO)})"


def test_a_file_that_may_not_be_read_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(b"Some text.\n"))
    message = r"gz: cannot be read \(Permission denied\)"
    refused = injected("prep.read", failing_from(2, errno.EACCES))
    with refused, pytest.raises(DataError, match=message):
        read("text", path)


def test_a_disk_error_in_parquet_is_not_reported_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": ["A text."]}), path)
    (file,) = find_files("parquet", [path], OPTIONS["parquet"])
    (unit,) = file_units(file, 1 << 20)

    class Failing(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def broken(given: object, **options: object) -> object:
        return real(io.BufferedReader(Failing(path)), **options)  # type: ignore[arg-type]

    real = parquet.ParquetFile
    monkeypatch.setattr(parquet, "ParquetFile", broken)
    for reading in (lambda: list(READERS["parquet"](unit)), lambda: list(file_units(file, 1))):
        with pytest.raises(BertdsError, match=r"t\.parquet: cannot be read \(.*[Ii]nput") as caught:
            reading()
        assert caught.value.exit_code == 1


def test_a_missing_part_is_not_reported_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.part: cannot be read"):
        open_part(tmp_path / "gone.part")


def test_after_a_disk_error_the_same_command_resumes(
    tmp_path: Path, vocab: Path, made: SimpleNamespace
) -> None:
    source = tmp_path / "w.xml.gz"  # one stream: the parent reads it
    source.write_bytes(gzip.compress(contents("wiki", made)))

    def command(out: str, *more: str) -> list[str]:
        files = ["--wiki", str(source), "--vocab", str(vocab), "--out", str(tmp_path / out)]
        return [*files, "--workers", "1", *more]

    def fail() -> None:
        if (tmp_path / "out" / ".work" / "plan.json").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    message = r"w\.xml\.gz: cannot be read \(Input/output error"
    with injected("prep.read", fail), pytest.raises(BertdsError, match=message):
        main(command("out"))
    with pytest.raises(DataError, match="prepared with other settings"):
        main(command("out", "--seed", "7"))
    assert main(command("out")) == 0
    assert main(command("fresh")) == 0
    assert made.tree(tmp_path / "out") == made.tree(tmp_path / "fresh")
