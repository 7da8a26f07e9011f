from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from bertds.system.fault_points import injected
from bertds.system.run_command import guarded
from data_prep.build_wiki_books import main
from data_prep.document import SourceFile
from data_prep.dry_run import in_bytes, sample_units


def told(text: str) -> dict[str, list[float]]:
    """The numbers in each line of the table."""
    rows = {}
    for line in text.splitlines():
        match = re.match(r"  (\w+(?: \d+)?)  +(.*)", line)
        if match:
            numbers = re.findall(r"[\d,]*\d(?:\.\d+)?", match[2])
            rows[match[1]] = [float(n.replace(",", "")) for n in numbers]
    return rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> list[str]:
    """Three megabytes in two kinds of sources, of which a part is read."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(3)
    (folder / "text").mkdir()
    for number in range(20):
        documents = [made.article(rng, 3) for _ in range(150)]
        text = "\n\n".join(d.replace("\n\n", "\n") for d in [*documents, "Too short."])
        (folder / "text" / f"{number}.txt").write_text(text)
    records = [json.dumps({"text": made.article(rng, 6)}) for _ in range(800)]
    (folder / "a.jsonl").write_text("\n".join(records))
    return ["--text", str(folder / "text"), "--jsonl", str(folder / "a.jsonl")]


@pytest.mark.parametrize("vocabulary", ["--vocab", "--train-vocab"])
def test_the_forecast_is_close_to_the_result(
    tmp_path: Path,
    corpus: list[str],
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: str,
) -> None:
    monkeypatch.setattr("data_prep.dry_run.SAMPLE_BYTES", 600_000)
    monkeypatch.setattr("data_prep.dry_run.LEAST_OF_A_SOURCE", 300_000)
    out = tmp_path / "out"
    given = [
        *corpus,
        "--out",
        str(out),
        "--workers",
        "1",
        "--instances",
        "64:10",
        "--dupe-factor",
        "2",
        "--compression",
        "none",
        "--shard-tokens",
        "30000",
        vocabulary,
        str(vocab) if vocabulary == "--vocab" else "300",
    ]
    assert main([*given, "--dry-run"]) == 0
    assert not out.exists()
    said = capsys.readouterr().err
    assert said.startswith("estimate from a sample")  # and nothing of the sample's stages
    assert re.search(r"with 1 worker$", said, re.MULTILINE)
    found = told(said)
    if vocabulary == "--train-vocab":
        assert found["text"][2] > 1000  # it runs; the numbers are checked below
        return
    assert main(given) == 0
    manifest = Manifest.load(out)
    tokens = sum(split.tokens for split in manifest.splits.values())
    for source, name in zip(manifest.sources, ("text", "jsonl")):
        assert found[name][0] == len(source["files"])
        assert found[name][2] == pytest.approx(source["documents_read"], rel=0.15)
    assert found["text"][3] + found["jsonl"][3] == pytest.approx(tokens, rel=0.15)
    assert found["dropped"][0] == pytest.approx(20, rel=0.5)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    assert found["shards"][0] == pytest.approx(shards, rel=0.2)
    rows = sum(file["rows"] for file in manifest.instances[0]["files"])
    assert found["rows 64"][0] == pytest.approx(rows, rel=0.2)


@pytest.mark.parametrize("kind", ["jsonl", "wiki"])
def test_a_large_compressed_file_is_not_read_to_its_end(
    tmp_path: Path,
    made: SimpleNamespace,
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr("data_prep.dry_run.LARGEST_UNIT", 100_000)
    rng = random.Random(8)
    articles = [made.article(rng, 4).replace("\n\n", " ") for _ in range(1500)]
    texts = {
        "jsonl": "".join(json.dumps({"text": a}) + "\n" for a in articles),
        "wiki": "".join(
            f'<doc id="{n}" title="T">\nT\n\n{a}\n</doc>\n' for n, a in enumerate(articles)
        ),
    }
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(texts[kind].encode())[:-8])  # its end would be noticed
    name = path.rename(tmp_path / ("a.jsonl.gz" if kind == "jsonl" else "a.gz"))
    given = [f"--{kind}", str(name), "--vocab", str(vocab), "--out", str(tmp_path / "o")]
    assert main([*given, "--dry-run"]) == 0
    assert told(capsys.readouterr().err)[kind][2] == pytest.approx(1500, rel=0.15)
    assert guarded(main, given) == 2


def test_units_are_spread_over_files_and_within_them(tmp_path: Path) -> None:
    files = [SourceFile("text", "text", Path(__file__), f"{n}", 5_000_000) for n in range(10)]
    units, reading = sample_units(files, tmp_path)
    assert list(units) == ["text"] and reading == {}
    assert sum(unit.size for unit in units["text"]) < 17 << 20
    starts = {unit.start for unit in units["text"]}
    assert len(starts) >= 3 and max(starts) > 3_000_000


def test_bad_input_is_reported_by_the_dry_run_too(
    tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.xml").write_text("<mediawiki><page><title>x")
    command = ["--wiki", str(tmp_path / "bad.xml"), "--vocab", str(vocab), "--dry-run"]
    assert guarded(main, [*command, "--out", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.xml" in line
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_predicted(
    tmp_path: Path,
    corpus: list[str],
    vocab: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_prep.dry_run.SAMPLE_BYTES", 100_000)
    monkeypatch.setattr("data_prep.dry_run.LEAST_OF_A_SOURCE", 100_000)
    out = str(tmp_path / "a" / "b" / "out")
    with injected("disk.free", lambda free: 1000):
        assert main([*corpus, "--vocab", str(vocab), "--dry-run", "--out", out]) == 0
    assert "not enough disk space" in capsys.readouterr().err


def test_units_of_numbers() -> None:
    assert [in_bytes(n) for n in (1000, 5.26e6, 7e9, 2e12)] == ["1 kB", "5.26 MB", "7 GB", "2 TB"]
