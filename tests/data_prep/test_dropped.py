from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.data.formats.manifest import Manifest
from data_prep.build_wiki_books import main
from data_prep.selection import drop_log
from data_prep.stages import near_duplicates, shuffle, tokenise
from data_prep.stages.markers import write_marker
from tests.support.fault_injection import Killed


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, made: SimpleNamespace) -> list[str]:
    """Articles with redirects and a talk page; records, some short, broken, equal or nearly so."""
    folder = tmp_path_factory.mktemp("sources")
    rng = random.Random(4)
    articles = [made.article(rng, 2) for _ in range(40)]
    pages = [made.page(f"A & {i}", text) for i, text in enumerate(articles)]
    pages += [made.page("R", "#REDIRECT [[A]]", redirect=True)]
    pages += [made.page("Talk:A", "Hello there.", namespace=1)]
    (folder / "w.xml").write_bytes(made.dump(pages))
    records = [{"id": i, "text": made.article(rng, 1)} for i in range(20)]
    records += [{"id": 20, "text": "Too short."}, {"id": 21, "text": articles[3]}]
    records += [{"id": 22, "text": articles[5] + " One more sentence stands here."}]
    lines = "".join(json.dumps(r) + "\n" for r in records) + "broken\n"
    (folder / "r.jsonl").write_text(lines)
    return ["--wiki", str(folder / "w.xml"), "--jsonl", str(folder / "r.jsonl")]


def arguments(sources: list[str], out: Path, *more: str) -> list[str]:
    settings = "--validation-fraction 0.1 --shard-tokens 1500 --keep-dropped --dedup minhash"
    return [*sources, "--out", str(out), *settings.split(), "--min-words", "9", *more]


def check(out: Path) -> dict[str, list[dict[str, str]]]:
    """Counts agree with the manifest, source by source; returns the documents by reason."""
    manifest = Manifest.load(out)
    found = {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (out / "dropped").iterdir()
    }
    assert {k: len(v) for k, v in found.items()} == manifest.documents["dropped"]
    for source in manifest.sources:
        own = Counter(
            reason
            for reason, records in found.items()
            for r in records
            if r["source"] == source["name"]
        )
        assert dict(own) == source["dropped"]
        assert source["documents_read"] == source["documents_written"] + own.total()
    return found


@pytest.mark.parametrize("vocabulary", ["given", "trained"])
def test_every_dropped_document_is_written_with_source_and_title(
    sources: list[str], vocab: Path, tmp_path: Path, made: SimpleNamespace, vocabulary: str
) -> None:
    choice = ["--vocab", str(vocab)] if vocabulary == "given" else ["--train-vocab", "300"]
    out = tmp_path / "one"
    assert main(arguments(sources, out, *choice, "--workers", "1")) == 0
    found = check(out)
    assert set(found) == {
        "redirect",
        "namespace",
        "too_short",
        "duplicate",
        "near_duplicate",
        "malformed",
    }
    assert found["redirect"] == [{"source": "wiki", "title": "R", "text": ""}]
    assert found["namespace"][0]["title"] == "Talk:A"
    assert found["too_short"] == [{"source": "jsonl", "title": "20", "text": "Too short."}]
    assert found["duplicate"][0]["title"] == "21"
    # The first source has it, so the longer text of the second one goes.
    assert found["near_duplicate"][0]["title"] == "22"
    if vocabulary == "given":
        mix = ["--mix", "wiki=1.5,jsonl=0.8"]
        assert main(arguments(sources, tmp_path / "a", *choice, *mix, "--workers", "1")) == 0
        assert main(arguments(sources, tmp_path / "b", *choice, *mix, "--workers", "2")) == 0
        assert made.tree(tmp_path / "a") == made.tree(tmp_path / "b")


@pytest.mark.parametrize("after", [1, 3, 9])
def test_after_a_kill_and_restart_the_same_documents_are_written(
    sources: list[str],
    vocab: Path,
    tmp_path: Path,
    made: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    command = arguments(sources, tmp_path / "out", "--vocab", str(vocab), "--workers", "1")
    command += ["--mix", "wiki=1.5,jsonl=0.8"]
    whole = [*command]
    whole[whole.index(str(tmp_path / "out"))] = str(tmp_path / "whole")
    assert main(whole) == 0
    check(tmp_path / "whole")
    count = 0

    def stop_after(marker: Path, *rest: object) -> object:
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return write_marker(marker, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        for module in (tokenise, shuffle, near_duplicates):
            patch.setattr(module, "write_marker", stop_after)
        with pytest.raises(Killed):
            main(command)
    assert main(command) == 0
    assert made.tree(tmp_path / "out") == made.tree(tmp_path / "whole")


def test_a_lost_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"gone\.dropped: missing"):
        drop_log.gather([tmp_path / "gone.dropped"], tmp_path, tmp_path)
