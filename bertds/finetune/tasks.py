"""The tasks: their columns, labels, metrics, files, default settings and published scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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


def _glue(
    name: str,
    folder: str,
    published: str,
    *,
    text: str,
    pair: str | None = None,
    label: str = "label",
    labels: tuple[str, ...] = ("0", "1"),
    metrics: tuple[str, ...] = ("accuracy",),
    hub_columns: dict[str, str] | None = None,
) -> Task:
    """Return a classification of GLUE, with the files of its distribution."""
    return Task(
        name=name,
        folder=folder,
        kind="classification",
        text=text,
        pair=pair,
        label=label,
        labels=labels,
        metrics=metrics,
        main_metric=metrics[0],
        hub=("nyu-mll/glue", name),
        hub_columns=hub_columns or {},
        train=(Files(names=("train.tsv",), hub_split="train"),),
        dev=(Files(names=("dev.tsv",), hub_split="validation"),),
        test=(Files(names=("test.tsv",), submission=f"{folder}.tsv", hub_split="test"),),
        published=published,
    )


_MNLI_DEV = (
    Files(names=("dev_matched.tsv",), hub_split="validation_matched"),
    Files(names=("dev_mismatched.tsv",), hub_split="validation_mismatched"),
)
_MNLI_TEST = (
    Files(names=("test_matched.tsv",), submission="MNLI-m.tsv", hub_split="test_matched"),
    Files(names=("test_mismatched.tsv",), submission="MNLI-mm.tsv", hub_split="test_mismatched"),
    Files(names=("diagnostic.tsv",), submission="AX.tsv"),
)

_GLUE = [
    replace(
        _glue(
            "cola",
            "CoLA",
            "test Matthews 52.1 / 60.5",
            text="sentence",
            metrics=("matthews", "accuracy"),
        ),
        columns=("source", "label", "mark", "sentence"),
    ),
    _glue("sst2", "SST-2", "test accuracy 93.5 / 94.9", text="sentence"),
    _glue(
        "mrpc",
        "MRPC",
        "test F1 88.9 / 89.3",
        text="#1 String",
        pair="#2 String",
        label="Quality",
        metrics=("f1", "accuracy"),
        hub_columns={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    ),
    replace(
        _glue(
            "stsb",
            "STS-B",
            "test Spearman 85.8 / 86.5",
            text="sentence1",
            pair="sentence2",
            label="score",
            labels=(),
            metrics=("pearson", "spearman"),
            hub_columns={"score": "label"},
        ),
        kind="regression",
        main_metric="spearman",
    ),
    _glue(
        "qqp",
        "QQP",
        "test F1 71.2 / 72.1",
        text="question1",
        pair="question2",
        label="is_duplicate",
        metrics=("f1", "accuracy"),
        hub_columns={"is_duplicate": "label"},
    ),
    replace(
        _glue(
            "mnli",
            "MNLI",
            "test accuracy m/mm 84.6/83.4 / 86.7/85.9",
            text="sentence1",
            pair="sentence2",
            label="gold_label",
            labels=NLI,
            hub_columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
        ),
        dev=_MNLI_DEV,
        test=_MNLI_TEST,
    ),
    _glue(
        "qnli",
        "QNLI",
        "test accuracy 90.5 / 92.7",
        text="question",
        pair="sentence",
        labels=RTE_LABELS,
    ),
    _glue(
        "rte",
        "RTE",
        "test accuracy 66.4 / 70.1",
        text="sentence1",
        pair="sentence2",
        labels=RTE_LABELS,
    ),
    _glue(
        "wnli",
        "WNLI",
        "omitted in the paper (majority class 65.1)",
        text="sentence1",
        pair="sentence2",
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
        learning_rates=(5e-5, 3e-5, 2e-5),
    )


_OWN = {
    "train": ("train.csv", "train.tsv", "train.jsonl"),
    "dev": tuple(
        f"{name}.{ending}"
        for name in ("dev", "validation", "valid")
        for ending in ("csv", "tsv", "jsonl")
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
