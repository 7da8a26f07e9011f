"""The guides' commands run as printed, one page after another, in a folder like a fresh clone.

What is changed is added at the end of a command (``smaller``): fewer steps and rows, a small model
in the place of BERT-large. The files that a guide takes from its reader are small pieces of real
ones. What cannot run here is in ``NOT_HERE`` with its reason; test_docs.py parses those lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from bertds import train
from bertds.cli import main as command
from tests.project.test_docs import Line, commands, ours

pytestmark = pytest.mark.slow

NOT_HERE = {
    "make": "installs; what its targets start is tested by itself",
    "pip": "installs",
    "git": "clones",
    "source": "changes the shell",
    "--sweep": "run by test_docs.py",
    "benchmarks": "a measurement",
    "sbatch": "needs Slurm",
    "nvidia-smi": "needs a GPU",
    "watch": "serves until Ctrl-C",
    "pytest": "tests",
    "tests/end_to_end/soak": "runs for hours",
    "ckpt_N.pt": "a checkpoint of DLE's: tests/pretrained/test_convert.py makes one",
}
WRITTEN = ("runs", "data", "models", "report", "mine")
SMALL = """
    model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2
    model.intermediate_size=64 schedule.total_steps=3 validation.max_samples=8 log.every_steps=1
    deepspeed.train_batch_size=4 deepspeed.train_micro_batch_size_per_gpu=2
""".split()  # noqa: SIM905


def smaller(name: str, words: list[str]) -> list[str]:
    """Add what makes a command quick, in the place of sizes that it prints."""
    if name == "train":
        if "--processes" in words and words[words.index("--processes") + 1] != "2":
            place = words.index("--processes")  # a page's eight GPUs are not here
            words = words[:place] + words[place + 2 :]
            if "--restarts" in words:  # which need processes
                place = words.index("--restarts")
                words = words[:place] + words[place + 2 :]
        small = {setting.split("=")[0] for setting in SMALL}
        return [*(w for w in words if w.split("=")[0] not in small), "--set", *SMALL]
    if name == "init" and "--corpus" not in words:  # it would ask
        return [*words, "--corpus", "books", "--gpu", "cpu", "--yes"]
    if name == "evaluate":
        return words if "--blimp" in words else [*words, "--max-samples", "8"]
    if name == "plan" and "--calibrate" in words:
        # The trial here ran on a CPU in fp32.
        return [*words, "--gpu", "cpu", "--set", "deepspeed.bf16.enabled=false"]
    if name == "prep" and words[0] != "show":
        return [*words, "--workers", "1"]
    if name == "finetune":
        quick = {
            "--learning-rate": "1e-3",
            "--epochs": "1",
            "--max-train-rows": "16",
            "--max-dev-rows": "8",
            "--max-length": "64",
        }
        new = [w for k, v in quick.items() if k not in words for w in (k, v)]
        if "--seeds" in words:
            words = [w for w in words if w not in ("3", "4", "5")]
        return [*words, *new]
    return words


def run(line: Line, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run one printed line in the working directory; False if it is one of NOT_HERE."""
    if any(word.startswith(tuple(NOT_HERE)) for word in line.words):
        return False
    if line.words[0] in ("touch", "rm"):
        return subprocess.run(line.words).returncode == 0
    if line.words[0] == "grep":
        files = [Path(word).read_text().splitlines() for word in line.words[2:4]]
        Path(line.words[5]).write_text("".join(f"{w}\n" for w in files[1] if w not in files[0]))
        return True
    found = ours(line.words)
    assert found is not None, f"{line}: neither ours nor in NOT_HERE"
    name, words = found
    if "<<<" in words:
        place = words.index("<<<")
        given = io.BytesIO(words[place + 1].encode() + b"\n")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
        words = words[:place]
    words = [
        w
        for word in words
        for w in (sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word])
    ]
    words = smaller(name, words)
    if name == "train":
        code = train.entry(words)
    else:
        try:
            code = command([name, *words])
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0, f"{line}: exit code {code}"
    return True


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, and nothing that hangs on the number of GPUs."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def clone(
    repository: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with the clone's own folders, and the files that a reader would bring."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("bertds", "ds_configs", "data_prep", "docs", "constraints.txt"):
        (root / name).symlink_to(repository / name)
    dump = shared_data / "wikipedia/enwiki-table-markup.xml.bz2"
    for name in (
        "dump",
        "enwiki-latest-pages-articles",
        "enwiki-latest-pages-articles-multistream",
    ):
        (root / f"{name}.xml.bz2").symlink_to(dump)
    for name in ("books", "gutenberg"):
        (root / name).mkdir()
        book = next((shared_data / "books").glob("84-*.txt")).read_text(encoding="utf-8-sig")
        (root / name / "84-frankenstein.txt").write_text(book[:100_000])
    vocabulary = shared_data / "vocab/bert-base-uncased-vocab.txt"
    for name in ("vocab.txt", "bert-base-uncased-vocab.txt", "pubmed-vocab.txt"):
        shutil.copyfile(vocabulary, root / name)
    with (root / "pubmed-vocab.txt").open("a") as file:
        file.write("acetyltransferase\n")
    (root / "new_pieces.txt").write_text("acetyltransferase\n##ylation\n")
    bert(root / "M", vocabulary)
    bert(root / "encoder", vocabulary, "BertModel")
    (root / "extracted").mkdir()
    articles = (shared_data / "wikipedia/extracted-mlperf/wiki_00").read_text().split("</doc>")
    (root / "extracted/wiki_00").write_text("</doc>".join([*articles[:8], "\n"]))
    tasks(root, shared_data)
    # The file of own GPUs is the one that the page prints.
    page_text = (repository / "docs/planning.md").read_text(encoding="utf-8")
    (root / "mine.yaml").write_text(page_text.split("# mine.yaml\n")[1].split("```")[0])
    (root / "RUN").symlink_to("M")
    minimal_pairs(root / "blimp/data")
    yield root


def minimal_pairs(folder: Path) -> None:
    """Two files in BLiMP's form."""
    folder.mkdir(parents=True)
    for paradigm in ("noun_agreement", "verb_agreement"):
        pair = {
            "sentence_good": "The cats sleep.",
            "sentence_bad": "The cats sleeps.",
            "field": "morphology",
            "linguistics_term": "agreement",
            "UID": paradigm,
        }
        (folder / f"{paradigm}.jsonl").write_text((json.dumps(pair) + "\n") * 3)


def bert(folder: Path, vocabulary: Path, kind: str = "BertForPreTraining") -> None:
    """A small random BERT, with its heads or without."""
    import torch
    import transformers
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    shutil.copyfile(vocabulary, folder / "vocab.txt")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def head(source: Path, target: Path, lines: int) -> None:
    """The first lines of a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:lines]))


def tasks(root: Path, data: Path) -> None:
    """Every task's files, small: the published ones cut short, the others in their layout."""
    for folder in ("CoLA", "SST-2", "MRPC"):
        for name in ("train", "dev", "test"):
            head(data / "glue" / folder / f"{name}.tsv", root / "GLUE" / folder / f"{name}.tsv", 24)
    made = {
        "STS-B": ("sentence1\tsentence2\tscore", ("2.5", "5.0"), ("train", "dev")),
        "QQP": ("question1\tquestion2\tis_duplicate", ("0", "1"), ("train", "dev")),
        "MNLI": (
            "sentence1\tsentence2\tgold_label",
            ("entailment", "neutral", "contradiction"),
            ("train", "dev_matched", "dev_mismatched"),
        ),
        "QNLI": ("question\tsentence\tlabel", ("entailment", "not_entailment"), ("train", "dev")),
        "RTE": ("sentence1\tsentence2\tlabel", ("entailment", "not_entailment"), ("train", "dev")),
        "WNLI": ("sentence1\tsentence2\tlabel", ("0", "1"), ("train", "dev")),
    }
    for folder, (header, labels, names) in made.items():
        (root / "GLUE" / folder).mkdir(parents=True)
        rows = [
            f"{n}\tthe cat {n} sat\tit sat on mat {n}\t{labels[n % len(labels)]}" for n in range(12)
        ]
        text = "\n".join([f"index\t{header}", *rows]) + "\n"
        for name in names:
            (root / "GLUE" / folder / f"{name}.tsv").write_text(text)
    for name in ("train", "testa", "testb"):
        source = data / "ner/conll2003" / f"eng.{name}"
        cut(source, root / "conll2003" / f"eng.{name}", 24)
    for name in ("train", "devel", "test"):
        for folder in ("NCBI-disease", "DIR"):
            cut(data / "ner/ncbi-disease" / f"{name}.tsv", root / folder / f"{name}.tsv", 40)
    (root / "squad").mkdir()
    for source, targets in (
        ("squadshifts-new_wiki_v1.0", ("train-v1.1.json",)),
        ("dev-v1.1", ("dev-v1.1.json",)),
        ("dev-v2.0-half", ("train-v2.0.json", "dev-v2.0.json")),
    ):
        with gzip.open(data / "squad" / f"{source}.json.gz", "rt") as file:
            values: dict[str, Any] = json.load(file)
        article = values["data"][0]
        small = {**values, "data": [{**article, "paragraphs": article["paragraphs"][:2]}]}
        for target in targets:
            (root / "squad" / target).write_text(json.dumps(small))
    shutil.copyfile(root / "squad/dev-v1.1.json", root / "dev-v1.1.json")
    for name in ("a", "b"):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *((f"text {n}", n % 2) for n in range(12))]
            )
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    (root / "corpus.txt").write_text(
        "".join(
            f"{words[n % 8]} plus {words[n * 3 % 8]} makes a number {n}.\n" + "\n" * (n % 4 == 3)
            for n in range(200)
        )
    )
    (root / "texts.txt").write_text("the first text\nthe second one\n")
    (root / "sentences.txt").write_text("ann went to london .\n")
    with gzip.open(data / "biomedical/bioasq6b/6B1_abstracts.json.gz", "rt") as file:
        abstracts = json.load(file)
    (root / "abstracts").mkdir()
    with gzip.open(root / "abstracts/a.json.gz", "wt") as file:
        json.dump(dict(list(abstracts.items())[:60]), file)


def cut(source: Path, target: Path, sentences: int) -> None:
    """The first sentences of a column file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    target.write_text("\n\n".join(text.split("\n\n")[:sentences]) + "\n\n")


def without(clone: Path, folder: Path, names: Collection[str]) -> None:
    """Make ``folder`` like the clone, but for what other pages' commands have written there."""
    for path in clone.iterdir():
        if path.name not in names:
            (folder / path.name).symlink_to(path)


def page(repository: Path, name: str) -> list[Line]:
    """A page's commands; a command in a table that only names one option is left out."""
    text = (repository / name).read_text(encoding="utf-8").splitlines()

    def is_name(line: Line) -> bool:
        return len(line.words) <= 4 and text[line.number - 1].lstrip().startswith("|")

    return [line for line in commands(repository / name) if not is_name(line)]


def test_readme(repository: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    done = [line for line in page(repository, "README.md") if run(line, monkeypatch)]
    assert len(done) >= 11
    assert (clone / "models/bert-large/model.safetensors").is_file()
    assert (clone / "report/index.html").is_file()


def test_tutorial_watching_planning_migrating(
    repository: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(clone, tmp_path, WRITTEN)
    monkeypatch.chdir(tmp_path)
    lines = page(repository, "docs/tutorial.md")
    by_hand = [line for line in lines if "demo" not in " ".join(line.words)]
    assert sum(run(line, monkeypatch) for line in by_hand) >= 8
    assert (tmp_path / "models/mine/model.safetensors").is_file()
    # The demo's folder, and the runs that other pages name.
    shutil.copytree(tmp_path / "runs/phase2", tmp_path / "demo/run")
    shutil.copytree(tmp_path / "models/mine", tmp_path / "demo/model")
    for name in ("adam", "lamb", "trial"):
        shutil.copytree(tmp_path / "runs/phase1", tmp_path / "runs" / name)
    rest = [line for line in lines if line not in by_hand]
    rest += page(repository, "docs/watching.md") + page(repository, "docs/planning.md")
    rest += page(repository, "docs/migrating.md")
    assert sum(run(line, monkeypatch) for line in rest) >= 11


def test_domain_adaptation(repository: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    lines = page(repository, "docs/domain_adaptation.md")
    for line in lines:
        if line.words[1] == "extend":  # two ways to one folder
            shutil.rmtree(line.words[3], ignore_errors=True)
        assert run(line, monkeypatch)
    assert len(lines) >= 10


def test_finetuning(repository: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the table in one command; predict then uses the folder that its kind left."""
    monkeypatch.chdir(clone)
    lines = page(repository, "docs/finetuning.md")
    trained = {"text-classification": "sst2", "ner": "conll2003", "qa": "squad"}
    count = 0
    for line in lines:
        words = list(line.words)
        task = words[words.index("--task") + 1] if "--task" in words else ""
        shutil.rmtree("O", ignore_errors=True)
        if words[1] == "predict" and task in trained:
            shutil.copytree(f"O-{trained[task]}", "O")
        elif words[1] == "convert":
            shutil.copytree("O-sst2", "O")
        count += run(line, monkeypatch)
        if words[1] == "finetune":
            shutil.rmtree(f"O-{task}", ignore_errors=True)
            shutil.move("O", f"O-{task}")
            for other in Path().glob("O-mnli*"):
                if other.name != "O-mnli":
                    shutil.rmtree(other)
    assert count >= 20


def test_data_preparation(
    repository: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first command, and the vocabulary's; the others are run by tests/data_prep."""
    without(clone, tmp_path, ("data", "data_own"))  # README's; this page prepares into it
    monkeypatch.chdir(tmp_path)
    lines = page(repository, "docs/data_preparation.md")
    own = [line for line in lines if "data_own" in line.words]
    assert len(own) == 2 and all(run(line, monkeypatch) for line in [lines[0], *own])
    assert (tmp_path / "data_own/tokenizer/vocab.txt").is_file()


def test_gpus_resuming_reliability(
    repository: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: what is printed for GPUs starts one process here."""
    without(clone, tmp_path, WRITTEN)
    monkeypatch.chdir(tmp_path)
    prepared = "bertds prep --wiki dump.xml.bz2 --vocab vocab.txt --out data/wiki_books"
    assert run(Line("", 0, tuple(prepared.split())), monkeypatch)
    for name, least in (("gpus", 5), ("resuming", 4), ("reliability", 6)):
        lines = page(repository, f"docs/{name}.md")
        assert sum(run(line, monkeypatch) for line in lines) >= least, name
