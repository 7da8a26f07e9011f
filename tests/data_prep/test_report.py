from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard
from data_prep.build_wiki_books import main
from data_prep.report import bins
from tests.support.prep_options import wiki_options

arguments = partial(
    wiki_options,
    settings="--shard-tokens 4000 --instances 64:10 --instances 32:5 --dupe-factor 1"
    " --compression none",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, wiki_dump: Path, vocab: Path) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert main(arguments(out, wiki_dump, vocab)) == 0
    return out


def figures(page: str) -> dict[str, str]:
    """Title -> the text of its picture and note."""
    found = {}
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        for svg in re.findall(r"<svg.*?</svg>", figure, re.DOTALL):
            ElementTree.fromstring(svg)  # well-formed
        title = re.search(r"<figcaption>(.*?)</figcaption>", figure)
        assert title
        found[title[1]] = html.unescape(re.sub(r"<[^>]+>", " ", figure.split("</figcaption>")[1]))
    return found


def test_the_page_says_what_the_files_hold(prepared: Path) -> None:
    page = (prepared / "report.html").read_text()
    manifest = Manifest.load(prepared)
    train = manifest.splits["train"]
    assert len(train.shards) <= 8  # all are read
    shards = [TokenShard.open(prepared / info.file, info) for info in train.shards]
    documents = np.concatenate(
        [np.diff(np.asarray(s.sentence_offsets)[np.asarray(s.document_offsets)]) for s in shards]
    )
    found = figures(page)
    assert list(found) == [
        "Tokens per document",
        "Sentences per document",
        "Tokens per sentence",
        "Tokens per row of 64",
        "Tokens per row of 32",
        "Masked tokens",
        "Next sentence",
        "Documents written and dropped",
        "Top sources",
    ]
    note = found["Tokens per document"]
    assert f"Mean {documents.mean():,.1f}, median {np.median(documents):,.0f}" in note
    assert f"longest {documents.max():,}" in note
    # One pass over all shards: the rows of all files.
    for length in (64, 32):
        rows = next(i for i in manifest.instances if i["sequence_length"] == length)["files"]
        masks = labels = tokens = count = 0
        for entry in rows:
            if "training" not in entry["file"]:
                continue
            with h5py.File(prepared / entry["file"]) as file:
                tokens += int(file["input_mask"][...].sum())
                masks += np.count_nonzero(file["masked_lm_positions"][...])
                labels += int(file["next_sentence_labels"][...].sum())
                count += len(file["input_ids"])
        fill = re.search(r"filled to ([\d.]+)% on average", found[f"Tokens per row of {length}"])
        assert fill and float(fill[1]) == pytest.approx(100 * tokens / count / length, abs=0.06)
        share = re.search(
            rf"([\d.]+)% of the tokens, [\d.]+ per row \(at most \d+\) at {length}",
            found["Masked tokens"],
        )
        assert share and float(share[1]) == pytest.approx(100 * masks / tokens, abs=0.06)
        random = re.findall(r"random ([\d.]+)%", found["Next sentence"])
        place = (64, 32).index(length)
        assert float(random[place]) == pytest.approx(100 * labels / count, abs=0.06)
    kinds = re.findall(r"(\[MASK\]|unchanged|random token) ([\d.]+)%", found["Masked tokens"])
    assert float(kinds[0][1]) == pytest.approx(80, abs=6)
    assert sum(float(share) for _, share in kinds[:3]) == pytest.approx(100, abs=0.3)
    assert "redirect" in found["Documents written and dropped"]
    assert re.search(r"redirect\s+10\s+\(13\.9%\)", found["Documents written and dropped"])
    assert re.search(r"wiki\s+60\s+\(100\.0%\)", found["Top sources"])
    assert page.count("src=") == 0 and "http" not in page  # nothing is fetched


def test_the_page_is_deterministic_and_is_written_again_if_lost(
    prepared: Path, wiki_dump: Path, vocab: Path, tmp_path: Path, made: SimpleNamespace
) -> None:
    out = tmp_path / "out"
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert made.tree(out) == made.tree(prepared)
    assert str(tmp_path) not in (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert main(arguments(out, wiki_dump, vocab)) == 0
    assert made.tree(out) == made.tree(prepared)


def test_corpora_without_pairs_or_rows_have_a_report_too(tmp_path: Path, vocab: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("This is the only document of all. It has been known for two years.")
    given = ["--text", str(text), "--vocab", str(vocab), "--validation-fraction", "0"]
    assert main([*given, "--out", str(tmp_path / "a")]) == 0
    found = figures((tmp_path / "a" / "report.html").read_text())
    assert "Tokens per document" in found and "Next sentence" not in found
    assert main([*given, "--out", str(tmp_path / "b"), "--pairs", "none"]) == 0
    found = figures((tmp_path / "b" / "report.html").read_text())
    assert "Masked tokens" in found and "Next sentence" not in found


def test_bins_hold_every_value() -> None:
    values = np.array([1, 1, 2, 3, 7, 8, 9, 1000, 40_000])
    counts, ticks, middle = bins.octave_bins(values)
    assert counts.sum() == len(values) and 0 < middle < len(counts)
    assert all(0 <= place <= len(counts) for place, _ in ticks)
    assert next(label for _, label in ticks) == "1" and len(ticks) <= 10
    places = {label: place for place, label in ticks}
    assert counts[: int(places["1"]) + 1][-1] == 2
    one, ticks, _ = bins.octave_bins(np.array([5, 5]))
    assert one.tolist() == [2] and ticks[0][1] == "5"
    counts, middle = bins.linear_bins(np.array([0, 3, 4, 99, 100, 5000]), 4, 100)
    assert counts[0] == 2 and counts[1] == 1 and counts[24] == 1 and counts[25] == 2
    assert counts.sum() == 6 and middle <= 25.5


def test_numbers_and_their_nouns_agree(prepared: Path) -> None:
    page = (prepared / "report.html").read_text()
    assert "10 masks, 1 pass<" in page and "(s)" not in page and "(es)" not in page


def test_a_failed_chart_affects_only_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such\nfont")

    monkeypatch.setattr("data_prep.report.page.draw_charts", fails)
    (tmp_path / "book.txt").write_text("A line of one. And of two.\n\n" * 40)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nline\n")
    command = [
        "--books",
        str(tmp_path / "book.txt"),
        "--vocab",
        str(vocab),
        "--out",
        str(tmp_path / "out"),
        "--validation-fraction",
        "0",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert not (tmp_path / "out" / "report.html").exists()
    assert "report.html could not be written: RuntimeError: no such font" in capsys.readouterr().err
