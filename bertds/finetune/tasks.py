"""The tasks: their columns, labels, metrics, files, default settings and published scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bertds.errors import ConfigError

Kind = Literal["classification", "regression", "ner", "qa"]

# Devlin et al. 2018, appendix A.3 (arXiv:1810.04805): the search of the paper.
PAPER_LEARNING_RATES = (5e-5, 4e-5, 3e-5, 2e-5)
NLI = ("entailment", "neutral", "contradiction")
# The order of the datasets library and of GLUE's official baseline.
RTE_LABELS = ("entailment", "not_entailment")


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """The files of one split, and the name under which its predictions are submitted."""

    names: tuple[str, ...]
    """File names in the published folder, tried in order."""
    submission: str = ""
    """The official name of the predictions file."""
    hub_split: str = ""
    """The split's name on the Hugging Face Hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task."""

    name: str
    kind: Kind
    text: str = ""
    """Name of the column of the first text."""
    pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()
    """As in the files, in the order of their numbers; empty = taken from the training data."""
    columns: tuple[str, ...] = ()
    """Names of the columns in files without a header."""
    train: tuple[Files, ...] = ()
    dev: tuple[Files, ...] = ()
    test: tuple[Files, ...] = ()
    metrics: tuple[str, ...] = ()
    main_metric: str = ""
    """The metric that selects the best learning rate."""
    hub: tuple[str, str] = ("", "")
    """Dataset and configuration on the Hub."""
    hub_columns: dict[str, str] = field(default_factory=dict)
    """Column here -> column on the Hub, if the names differ."""
    epochs: float = 3.0
    batch_size: int = 32
    max_length: int = 128
    learning_rates: tuple[float, ...] = PAPER_LEARNING_RATES
    published: str = ""
    """The paper's scores of BERT-base and BERT-large, for the report."""
    folder: str = ""
    """Name of the task's folder in GLUE's distribution."""


def _train() -> tuple[Files, ...]:
    return (Files(names=("train.tsv",), hub_split="train"),)


def _dev() -> tuple[Files, ...]:
    return (Files(names=("dev.tsv",), hub_split="validation"),)


def _test(submission: str) -> tuple[Files, ...]:
    return (Files(names=("test.tsv",), submission=submission, hub_split="test"),)


_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}

_GLUE = [
    Task(
        name="cola",
        folder="CoLA",
        kind="classification",
        text="sentence",
        labels=("0", "1"),
        columns=("source", "label", "mark", "sentence"),
        metrics=("matthews", "accuracy"),
        main_metric="matthews",
        hub=("nyu-mll/glue", "cola"),
        train=_train(),
        dev=_dev(),
        test=_test("CoLA.tsv"),
        published="test Matthews 52.1 / 60.5",
    ),
    Task(
        name="sst2",
        folder="SST-2",
        kind="classification",
        text="sentence",
        labels=("0", "1"),
        metrics=("accuracy",),
        main_metric="accuracy",
        hub=("nyu-mll/glue", "sst2"),
        train=_train(),
        dev=_dev(),
        test=_test("SST-2.tsv"),
        published="test accuracy 93.5 / 94.9",
    ),
    Task(
        name="mrpc",
        folder="MRPC",
        kind="classification",
        text="#1 String",
        pair="#2 String",
        label="Quality",
        labels=("0", "1"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        hub=("nyu-mll/glue", "mrpc"),
        hub_columns={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
        train=_train(),
        dev=_dev(),
        test=_test("MRPC.tsv"),
        published="test F1 88.9 / 89.3",
    ),
    Task(
        name="stsb",
        folder="STS-B",
        kind="regression",
        text="sentence1",
        pair="sentence2",
        label="score",
        metrics=("pearson", "spearman"),
        main_metric="spearman",
        hub=("nyu-mll/glue", "stsb"),
        hub_columns={**_SENTENCES, "score": "label"},
        train=_train(),
        dev=_dev(),
        test=_test("STS-B.tsv"),
        published="test Spearman 85.8 / 86.5",
    ),
    Task(
        name="qqp",
        folder="QQP",
        kind="classification",
        text="question1",
        pair="question2",
        label="is_duplicate",
        labels=("0", "1"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        hub=("nyu-mll/glue", "qqp"),
        hub_columns={"is_duplicate": "label"},
        train=_train(),
        dev=_dev(),
        test=_test("QQP.tsv"),
        published="test F1 71.2 / 72.1",
    ),
    Task(
        name="mnli",
        folder="MNLI",
        kind="classification",
        text="sentence1",
        pair="sentence2",
        label="gold_label",
        labels=NLI,
        metrics=("accuracy",),
        main_metric="accuracy",
        hub=("nyu-mll/glue", "mnli"),
        hub_columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        train=(Files(names=("train.tsv",), hub_split="train"),),
        dev=(
            Files(names=("dev_matched.tsv",), hub_split="validation_matched"),
            Files(names=("dev_mismatched.tsv",), hub_split="validation_mismatched"),
        ),
        test=(
            Files(names=("test_matched.tsv",), submission="MNLI-m.tsv", hub_split="test_matched"),
            Files(
                names=("test_mismatched.tsv",),
                submission="MNLI-mm.tsv",
                hub_split="test_mismatched",
            ),
            Files(names=("diagnostic.tsv",), submission="AX.tsv"),
        ),
        published="test accuracy m/mm 84.6/83.4 / 86.7/85.9",
    ),
    Task(
        name="qnli",
        folder="QNLI",
        kind="classification",
        text="question",
        pair="sentence",
        labels=RTE_LABELS,
        metrics=("accuracy",),
        main_metric="accuracy",
        hub=("nyu-mll/glue", "qnli"),
        train=_train(),
        dev=_dev(),
        test=_test("QNLI.tsv"),
        published="test accuracy 90.5 / 92.7",
    ),
    Task(
        name="rte",
        folder="RTE",
        kind="classification",
        text="sentence1",
        pair="sentence2",
        labels=RTE_LABELS,
        metrics=("accuracy",),
        main_metric="accuracy",
        hub=("nyu-mll/glue", "rte"),
        train=_train(),
        dev=_dev(),
        test=_test("RTE.tsv"),
        published="test accuracy 66.4 / 70.1",
    ),
    Task(
        name="wnli",
        folder="WNLI",
        kind="classification",
        text="sentence1",
        pair="sentence2",
        labels=("0", "1"),
        metrics=("accuracy",),
        main_metric="accuracy",
        hub=("nyu-mll/glue", "wnli"),
        train=_train(),
        dev=_dev(),
        test=_test("WNLI.tsv"),
        published="omitted in the paper (majority class 65.1)",
    ),
]

_NER_NAMES = {
    "train": (
        "eng.train",
        "train.txt",
        "train.tsv",
        "train.conll",
        "train.bio",
        "train.jsonl",
        "text_train.txt",  # NeMo: the tags are in labels_train.txt
        "wnut17train.conll",
    ),
    "dev": (
        "eng.testa",
        "valid.txt",
        "dev.txt",
        "devel.tsv",
        "dev.tsv",
        "valid.tsv",
        "dev.conll",
        "dev.jsonl",
        "validation.jsonl",
        "text_dev.txt",
        "emerging.dev.conll",  # WNUT17
    ),
    "test": (
        "eng.testb",
        "test.txt",
        "test.tsv",
        "test.conll",
        "test.jsonl",
        "text_test.txt",
        "emerging.test.annotated",
    ),
}


def _ner(name: str, published: str) -> Task:
    return Task(
        name=name,
        kind="ner",
        metrics=("f1", "precision", "recall"),
        main_metric="f1",
        train=(Files(names=_NER_NAMES["train"], hub_split="train"),),
        dev=(Files(names=_NER_NAMES["dev"], hub_split="validation"),),
        test=(Files(names=_NER_NAMES["test"], submission="predictions.conll", hub_split="test"),),
        hub=("eriktks/conll2003", ""),
        published=published,
    )


_SQUAD_DEV = ("dev-v1.1.json", "dev.json", "validation.json")
_SQUAD2_DEV = ("dev-v2.0.json", "dev-v2.0-half.json", "dev.json", "validation.json")


def _squad(name: str, version: str, dev: tuple[str, ...], published: str) -> Task:
    train = (f"train-{version}.json", "train.json", f"train-{version}-sample.json")
    return Task(
        name=name,
        kind="qa",
        metrics=("f1", "exact_match"),
        main_metric="f1",
        train=(Files(names=train, hub_split="train"),),
        dev=(Files(names=dev, submission="predictions.json", hub_split="validation"),),
        hub=("rajpurkar/squad" if version == "v1.1" else "rajpurkar/squad_v2", ""),
        epochs=2.0,
        max_length=384,
        published=published,
        batch_size=32,
        learning_rates=(5e-5, 3e-5, 2e-5),
    )


_OWN = {
    "train": ("train.csv", "train.tsv", "train.jsonl"),
    "dev": (
        "dev.csv",
        "dev.tsv",
        "dev.jsonl",
        "validation.csv",
        "validation.tsv",
        "validation.jsonl",
        "valid.csv",
        "valid.tsv",
        "valid.jsonl",
    ),
    "test": ("test.csv", "test.tsv", "test.jsonl"),
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        *_GLUE,
        _ner("conll2003", "test F1 92.4 / 92.8 (cased, document context)"),
        _ner("ner", ""),
        _squad("squad", "v1.1", _SQUAD_DEV, "dev EM/F1 80.8/88.5 / 84.1/90.9"),
        _squad("squad_v2", "v2.0", _SQUAD2_DEV, "dev EM/F1 - / 78.7/81.9"),
        Task(
            name="text-classification",
            kind="classification",
            text="text",
            pair="text_pair",
            metrics=("accuracy", "macro_f1"),
            main_metric="accuracy",
            train=(Files(names=_OWN["train"], hub_split="train"),),
            dev=(Files(names=_OWN["dev"], hub_split="validation"),),
            test=(Files(names=_OWN["test"], submission="predictions.tsv", hub_split="test"),),
        ),
    ]
}

GLUE = tuple(task.name for task in _GLUE)


def get_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TASKS:
        raise ConfigError(f"--task {name}: unknown; the tasks are glue, {', '.join(TASKS)}")
    return TASKS[name]
