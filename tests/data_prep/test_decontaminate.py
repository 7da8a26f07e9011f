from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.errors import ConfigError, DataError
from data_prep.build_wiki_books import main
from data_prep.selection.decontaminate import Overlaps, check_ngram, read_test_files
from data_prep.selection.task_texts import task_texts
from data_prep.selection.words import normalised
from data_prep.sources import READERS, file_units, find_files

EXAMPLE = (
    "Around 0335 GMT , Tab shares were up 19 cents , or 4.4 % , at A $ 4.56 , having earlier set "
    "a record high of A $ 4.57 ."
)


def test_every_kind_of_file_gives_its_texts(shared_data: Path, tmp_path: Path) -> None:
    # Counts and first texts as the files' publishers state them (data/README.md).
    glue = list(task_texts(shared_data / "glue" / "MRPC" / "test.tsv"))
    assert any(cell.startswith("PCCW 's chief operating officer , Mike Butcher") for cell in glue)
    conll = list(task_texts(shared_data / "ner" / "conll2003" / "eng.testb"))
    assert len(conll) == 3453
    assert conll[0].startswith("SOCCER - JAPAN GET LUCKY WIN , CHINA IN SURPRISE DEFEAT")
    disease = list(task_texts(shared_data / "ner" / "ncbi-disease" / "test.tsv"))
    assert len(disease) == 940 and sum(len(s.split()) for s in disease) == 24_497
    squad = list(task_texts(shared_data / "squad" / "dev-v1.1.json.gz"))
    assert len(squad) == 2_067 + 10_570
    (tmp_path / "a.jsonl").write_text('{"a": "One.", "b": [{"c": "Two."}, 3]}\n\n{"a": "Three."}\n')
    assert list(task_texts(tmp_path / "a.jsonl")) == ["One.", "Two.", "Three."]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"One line.\nAnother line.\n"))
    assert list(task_texts(tmp_path / "a.txt.gz")) == ["One line.", "Another line."]
    # What a file holds depends on its name without the ending of the compression.
    for ending, packed in (("gz", gzip), ("bz2", bz2), ("xz", lzma)):
        (tmp_path / f"a.tsv.{ending}").write_bytes(packed.compress(b"One.\tTwo.\n"))
        assert list(task_texts(tmp_path / f"a.tsv.{ending}")) == ["One.", "Two."]


def test_overlaps_are_those_that_brute_force_finds(shared_data: Path, tmp_path: Path) -> None:
    """Against sets of tuples of words: SQuAD's paragraphs in real articles, 13 words each."""
    files = find_files("wiki", [str(shared_data / "wikipedia" / "extracted-mlperf")], ())[:1]
    articles = [d.text for f in files for u in file_units(f, 1 << 22) for d in READERS[u.reader](u)]
    articles = [text for text in articles if text][:25]
    lines = []
    for number, text in enumerate(articles[:8]):  # something of some of them, changed in looks
        words = normalised(text).split()
        start = len(words) // (number + 2)
        lines.append(", ".join(w.upper() for w in words[start : start + 6 + 2 * number]))
    lines += [EXAMPLE, "too short to count"]
    path = tmp_path / "test.txt"
    path.write_text("\n".join(lines))
    (known,), table = read_test_files([str(path)], 13)
    tests = [normalised(line).split() for line in lines]
    assert known.texts == sum(len(words) >= 8 for words in tests)
    assert known.too_short == len(tests) - known.texts
    wanted = {
        tuple(words[i : i + min(13, len(words))])
        for words in tests
        if len(words) >= 8
        for i in range(len(words) - min(13, len(words)) + 1)
    }
    overlaps = Overlaps(table)
    found = []
    for text in articles:
        words = normalised(text).split()
        expected = any(
            tuple(words[i : i + n]) in wanted
            for n in range(8, 14)
            for i in range(len(words) - n + 1)
        )
        assert overlaps.found_in(text) == expected
        found.append(expected)
    assert 5 <= sum(found) < len(found)


def test_documents_that_contain_test_text_are_dropped(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler = [f"This is document number {i} of them, and it says nothing new." for i in range(30)]
    held = f"Some report said this. {EXAMPLE.replace(' ,', ',').lower()} And so it ended."
    (tmp_path / "a.txt").write_text("\n\n".join([*filler, held]))
    (tmp_path / "test.tsv").write_text(f"index\ts\n0\t{EXAMPLE}\n1\tshort one\n")
    out = tmp_path / "out"
    command = [
        "--text",
        str(tmp_path / "a.txt"),
        "--out",
        str(out),
        "--vocab",
        str(vocab),
        "--workers",
        "1",
        "--keep-dropped",
        "--decontaminate",
        str(tmp_path / "test.tsv"),
    ]
    assert main(command) == 0
    manifest = Manifest.load(out)
    assert manifest.documents == {"read": 31, "written": 30, "dropped": {"contaminated": 1}}
    (entry,) = manifest.settings["filters"]["test_files"]
    assert (entry["name"], entry["texts"]) == ("test.tsv", 1)
    (line,) = (out / "dropped" / "contaminated.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == held and json.loads(line)["source"] == "text"
    # The test file is part of what the result depends on.
    (tmp_path / "test.tsv").write_text(f"index\ts\n0\t{EXAMPLE} Changed.\n")
    with pytest.raises(DataError, match="prepared with other settings"):
        main(command)


def test_an_unreadable_test_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    (tmp_path / "x.jsonl").write_text("{}\nno json\n")
    (tmp_path / "x.txt").write_text("few words\n")
    (tmp_path / "x.bin").write_bytes(b"caf\xe9 \xff")
    for name, message in (
        ("x.json", "not JSON in SQuAD's form"),
        ("x.jsonl", "line 2 is not JSON"),
        ("x.txt", "contains no text of at least 8 words"),
        ("x.bin", "not UTF-8"),
        ("gone", "no such file"),
        ("", "is a folder; give the files of its test split"),
    ):
        with pytest.raises(DataError, match=message):
            read_test_files([str(tmp_path / name)], 13)
    with pytest.raises(ConfigError, match="--decontaminate-ngram 5: allowed: 8 to 100"):
        check_ngram(5)
