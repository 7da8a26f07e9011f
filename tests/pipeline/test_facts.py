"""The demo's text: what is held out is held out, and the answers are not in the row."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bertds.cli import main
from bertds.errors import BertdsError
from bertds.monitor.run_files import read_metrics
from bertds.pipeline import demo_corpus, facts, stages, wheels
from bertds.pipeline.summary import real_run, verdict


def letters(number: int) -> str:
    return chr(97 + number // 26) + chr(97 + number % 26)


ROWS = [
    [f"Land{letters(n)}", f"City{letters(n)}", "Americas" if n % 2 else "Asia", f"Folk{letters(n)}"]
    for n in range(120)
]


@pytest.fixture(scope="module")
def told() -> facts.Facts:
    return facts.tell(facts.choose(ROWS))


def test_held_out_sentences_are_in_no_training_document(told: facts.Facts) -> None:
    read = {sentence for document in told.documents for sentence in document}
    kept_back = [sentence for document in told.held_out for sentence in document]
    assert len(kept_back) == len(set(kept_back)) == len(told.questions) == 48 * 3 * 2
    assert read.isdisjoint(kept_back)
    assert {q.text.replace(facts.MASK, q.answer) for q in told.questions} == set(kept_back)
    assert len(read) == 48 * (6 + 4 + 4)
    # Each fact occurs in other words, each form about other countries.
    for question in told.questions:
        name = next(w for w in question.text.split() + [question.answer] if w.startswith("land"))
        assert any(name in s.split() and question.answer in s.split() for s in read)
    assert sum(map(len, told.documents)) == facts.TELLINGS * len(read)


def test_no_document_describes_a_country_twice(told: facts.Facts) -> None:
    for document in [*told.documents, *told.held_out]:
        names = [word for sentence in document for word in sentence.split() if word[:4] == "land"]
        assert len(names) == len(set(names)) == len(document) <= facts.PER_DOCUMENT


def test_prompts_are_six_held_out_questions_with_distinct_answers(told: facts.Facts) -> None:
    assert len(told.prompts) == 6 and set(told.prompts) <= set(told.questions)
    assert all(prompt.text.count(facts.MASK) == 1 for prompt in told.prompts)
    capitals = [prompt.answer for prompt in told.prompts if prompt.kind == "capital"]
    assert len(set(capitals)) == len(capitals) == facts.PROMPTS["capital"]
    assert facts.tell(facts.choose(ROWS)).prompts == told.prompts
    assert facts.tell(facts.choose(ROWS), seed=1).prompts != told.prompts


def test_every_word_is_in_the_vocabulary(told: facts.Facts, tmp_path: Path) -> None:
    facts.write(told, tmp_path)
    words = set((tmp_path / "vocab.txt").read_text().split())
    for name in ("train.txt", "held_out.txt"):
        assert set((tmp_path / name).read_text().split()) <= words


def test_files_that_are_the_same_are_not_written_again(told: facts.Facts, tmp_path: Path) -> None:
    """Preparation would warn that its source was modified, each time the demo is continued."""
    facts.write(told, tmp_path)
    train, vocabulary = tmp_path / "train.txt", tmp_path / "vocab.txt"
    before = train.stat()
    vocabulary.write_text("changed")
    facts.write(told, tmp_path)
    assert (train.stat().st_mtime_ns, train.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert vocabulary.read_text() != "changed"


def test_countries_without_a_question_of_their_own_are_left_out() -> None:
    odd = [
        ["Monaco", "Monaco", "Europe", "Monegasque"],  # its name is the answer
        ["Two Words", "City", "Asia", "Folk"],
        ["Nowhere", None, "Asia", "Folk"],
        ["Landaa", "Othercity", "Asia", "Otherfolk"],  # a name that is taken
    ]
    assert facts.choose([*odd, *ROWS]) == facts.choose(ROWS)
    assert facts.choose(ROWS)[1].continent == "asia" and len(facts.choose(ROWS)) == 48
    with pytest.raises(BertdsError, match="10 suitable countries; 48 are needed"):
        facts.choose(ROWS[:20])


def test_the_table_is_read_from_the_wheel_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "countryinfo-1.0.1-py3-none-any.whl", "w") as wheel:
            for row in ROWS:
                keys = ("name", "capital", "region", "demonym")
                text = json.dumps(dict(zip(keys, row)))
                wheel.writestr(f"countryinfo/data/{row[0]}.json", text)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    assert facts.fetch(tmp_path) == facts.choose(ROWS)
    assert facts.fetch(tmp_path) == facts.choose(ROWS)
    assert len(calls) == 1 and calls[0][-1] == facts.REQUIREMENT
    assert [path.name for path in tmp_path.iterdir()] == ["countries.json"]


def test_without_the_network_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(BertdsError, match=r"countryinfo==1\.0\.1.*No matching.*WIKI=dump"):
        facts.fetch(tmp_path)


def test_a_damaged_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "countryinfo-1.0.1-py3-none-any.whl"
    wheel.write_bytes(b"PK torn")
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(BertdsError, match="not a wheel"):
        facts.fetch(tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(BertdsError, match=r"does not contain countryinfo/data/\*\.json"):
        facts.fetch(tmp_path)


def test_a_demo_of_another_version_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "fetch", lambda folder: facts.choose(ROWS))
    stages.prepare_facts(tmp_path)
    stages.prepare_facts(tmp_path)  # the same again is not
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(facts, "fetch", lambda folder: facts.choose(ROWS[1:]))
    with pytest.raises(BertdsError, match="another version of bertds made this demo"):
        stages.prepare_facts(tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and len(before) > 5


def test_the_verdict_agrees_with_the_scores() -> None:
    prompts = [{"text": "a [MASK]", "answer": "b", "before": "c", "after": "b", "frequent": "c"}]
    scores = {
        "prompts": prompts,
        "run": {"mlm_loss": 6.0, "unigram_entropy": 6.02},
    }
    assert "has learned only how often words occur" in verdict(scores, "run")[0]
    scores["run"] = {"mlm_loss": 6.4, "unigram_entropy": 6.02}
    assert "has not even learned how often words occur" in verdict(scores, "run")[0]
    scores["run"] = {"mlm_loss": 5.0, "unigram_entropy": 6.0}
    assert "1.00 nats lower" in verdict(scores, "run")[0] and "1 of 1" in verdict(scores, "run")[0]
    told = {**scores, "questions": {"capital": {"asked": 4, "right": 3, "answers": 2}}}
    text = " ".join(verdict(told, "run"))
    assert "1 of 1 answers are correct after training, compared with 0 before" in text
    assert "75% on the 4 about a capital (guessing among 2 answers: 50%)" in text


def test_the_cost_of_a_real_run_is_that_of_the_planner() -> None:
    text = real_run()
    assert "large_phase1, then large_phase2" in text and "$" in text and "about 0 hours" not in text


@pytest.mark.slow
def test_the_demo_asks_only_held_out_questions_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "dump.xml"
    pages = "".join(
        f"<page><title>Page {n}</title><ns>0</ns><id>{n}</id><revision><id>{n}</id>"
        f"<text>{' '.join(f'Town {letters(n + k)} is near river {letters(k)}.' for k in range(30))}"
        "</text></revision></page>"
        for n in range(1, 40)
    )
    dump.write_text(f'<mediawiki xml:lang="en">{pages}</mediawiki>')
    monkeypatch.setattr(facts, "fetch", lambda _: facts.choose(ROWS))
    monkeypatch.setattr(demo_corpus, "fetch", lambda _: dump)
    work = tmp_path / "work"
    command = ["pipeline", "--work", str(work), "--train-vocab", "300"]
    command += ["--set", "schedule.total_steps=4", "validation.every_steps=2", "log.progress=none"]
    assert main(command) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert (
        "compared with 0 before. Accuracy on all held-out sentences" in out
        and "on the 96 about a capital" in out
    )
    assert (
        "most frequent token" in out and "A full run" in out and "predict --task fill-mask" in out
    )
    scores = json.loads((work / "scores.json").read_text())
    validation = read_metrics(work / "run" / "metrics.jsonl").validation
    assert [line["step"] for line in validation] == [0, 2, 4]
    for asked, first, last in zip(
        scores["prompts"], validation[0]["prompts"], validation[-1]["prompts"], strict=True
    ):
        assert asked["before"] == first["predicted"] and asked["after"] == last["predicted"]
    assert len(scores["prompts"]) == 6
    assert scores["run"]["mlm_loss"] == pytest.approx(validation[-1]["mlm_loss"], rel=1e-5)
    assert scores["run"]["mlm_majority"] == pytest.approx(validation[-1]["mlm_majority"])
    assert (work / "data" / "report.html").is_file()
    report = (work / "report" / "index.html").read_text()
    assert "<h1>BERT on facts about countries</h1>" in report and "step 0" in report

    assert main(command) == 0
    assert capfd.readouterr().err.count("already done") == 3

    # A finished run refuses what it would not do, and continues with a longer schedule.
    for setting, named in (
        ("deepspeed.optimizer.type=Muon", "now deepspeed.optimizer.type=Muon"),
        ("deepspeed.optimizer.params.lr=0.5", "so lr=0.5 would have no effect"),
    ):
        assert main([*command, setting]) == 2
        assert named in capfd.readouterr().err
    assert json.loads((work / "scores.json").read_text()) == scores
    assert main([one.replace("total_steps=4", "total_steps=5") for one in command]) == 0
    assert read_metrics(work / "run" / "metrics.jsonl").validation[-1]["step"] == 5
    assert json.loads((work / "scores.json").read_text())["stamp"] != scores["stamp"]

    def fail(*_: object) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr("bertds.commands.pipeline.write_report", fail)
    assert main([one.replace("total_steps=4", "total_steps=5") for one in command]) == 0
    assert "the report could not be written: RuntimeError: no such font" in capfd.readouterr().err
