"""Our weights and scores against a plain transformers script with the same settings and seed.

The quick sizes are so small that their scores alone would prove little (MRPC still answers with
the larger class), so all weights after training are compared too: they see every row, the order,
the schedule, clipping and dropout. ``BERTDS_PARITY=sample`` takes the sizes of the table in
docs/finetuning.md (half an hour of one core), ``BERTDS_PARITY=full`` whole tasks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.finetune.loop import TrainSettings
from bertds.finetune.task_data import DataOptions
from bertds.finetune.tasks import TASKS
from bertds.finetune.trials import RunOptions, finetune

SIZE = os.environ.get("BERTDS_PARITY", "quick")
FULL = SIZE == "full"
DEV_ROWS = {"quick": 150, "sample": 300}
CONLL = {"quick": (192, 1), "sample": (640, 1), "full": (4000, 3)}  # sentences, epochs
CONLL_DEV_CHARACTERS = 15_000
SEED, BATCH = 42, 32
# The rate times ten steps is the way a weight can go; this is less than a hundredth of it.
WEIGHT_TOLERANCE = 1e-5
RATE = {"quick": 3e-4, "sample": 2e-4, "full": 5e-5}[SIZE]  # few steps need larger ones


def plain_training(model: Any, rows: list[dict], epochs: int, pad: Any) -> None:
    """The loop that all users write: AdamW, linear warm-up and decay, clipping."""
    from transformers import get_linear_schedule_with_warmup

    no_decay = ("bias", "LayerNorm.weight")
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if not n.endswith(no_decay)],
            "weight_decay": 0.01,
        },
        {
            "params": [p for n, p in model.named_parameters() if n.endswith(no_decay)],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.1 * steps), steps)
    torch.manual_seed(SEED)
    shuffle = torch.Generator().manual_seed(SEED)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=shuffle).tolist()
        for begin in range(0, len(order), BATCH):
            model(**pad([rows[i] for i in order[begin : begin + BATCH]])).loss.backward()
            # torch's own norm of float32 numbers on a CPU is low by up to 1e-3.
            grads = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, torch.cat(grads).norm())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


def tsv(path: Path, columns: tuple[int, ...], header: bool) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8-sig").strip("\n").split("\n")[header:]
    return [[line.split("\t")[column] for column in columns] for line in lines]


def plain_classification(
    folder: Path, model_path: Path, columns: tuple[int, ...], header: bool, size: int, epochs: int
) -> tuple[list[int], list[int], Any]:
    """Return (gold, predicted) on the dev set, and the trained model."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
    )

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)

    def encode(rows: list[list[str]]) -> list[dict]:
        return [
            {**tokenizer(*texts, truncation=True, max_length=128), "labels": int(label)}
            for label, *texts in rows
        ]

    pad = DataCollatorWithPadding(tokenizer)
    train = encode(tsv(folder / "train.tsv", columns, header)[:size])
    plain_training(model, train, epochs, pad)
    dev = encode(tsv(folder / "dev.tsv", columns, header))
    predicted: list[int] = []
    with torch.inference_mode():
        for begin in range(0, len(dev), 64):
            predicted += model(**pad(dev[begin : begin + 64])).logits.argmax(-1).tolist()
    return [row["labels"] for row in dev], predicted, model


def largest_difference(folder: Path, model: Any) -> float:
    """Compare the weights that we saved with a model's: the largest |difference| of all."""
    from safetensors.torch import load_file

    mine, theirs = load_file(folder / "model.safetensors"), model.state_dict()
    assert set(mine) == set(theirs)
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def ours(
    task: str, data: Path, model: Path, out: Path, epochs: int, batching: str = "random"
) -> dict[str, float]:
    settings = TrainSettings(learning_rate=RATE, epochs=epochs, batch_size=BATCH, batching=batching)
    results = finetune(
        TASKS[task],
        DataOptions(data=str(data)),
        RunOptions(
            model=str(model),
            out=out,
            settings=settings,
            learning_rates=(RATE,),
            seeds=(SEED,),
            max_length=128,
            save_model=True,
        ),
    )
    print(task, results["runs"])
    return {name: value["mean"] for name, value in results["scores"]["dev"].items()}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("task", "folder", "columns", "header", "sizes"),
    [
        (
            "sst2",
            "SST-2",
            (1, 0),
            True,
            {"quick": (320, 1), "sample": (10_000, 1), "full": (10_000, 3)},
        ),
        (
            "mrpc",
            "MRPC",
            (0, 3, 4),
            True,
            {"quick": (128, 1), "sample": (960, 1), "full": (3668, 3)},
        ),
        (
            "cola",
            "CoLA",
            (1, 3),
            False,
            {"quick": (256, 1), "sample": (4000, 1), "full": (8551, 3)},
        ),
    ],
)
def test_glue_scores_equal_a_plain_script(
    shared_data: Path,
    tmp_path: Path,
    task: str,
    folder: str,
    columns: tuple[int, ...],
    header: bool,
    sizes: dict[str, tuple[int, int]],
) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    size, epochs = sizes[SIZE]
    data, model = tmp_path / "data", shared_data / "model" / "all-MiniLM-L6-v2"
    data.mkdir()
    for name in ("train.tsv", "dev.tsv"):  # without the test file: it is not scored
        lines = (shared_data / "glue" / folder / name).read_bytes().split(b"\n")
        rows = size if name == "train.tsv" else len(lines) if FULL else DEV_ROWS[SIZE]
        keep = min(len(lines), rows + header)
        (data / name).write_bytes(b"\n".join(lines[:keep]) + b"\n" * (keep < len(lines)))
    scores = ours(task, data, model, tmp_path / "out", epochs)
    gold, predicted, plain = plain_classification(data, model, columns, header, size, epochs)
    metric = {"sst2": accuracy_score, "mrpc": f1_score, "cola": matthews_corrcoef}[task]
    expected = metric(gold, predicted)
    lines = (tmp_path / "out" / "predictions" / "dev.tsv").read_text().splitlines()[1:]
    mine = [int(line.split("\t")[1]) for line in lines]
    equal = sum(a == b for a, b in zip(mine, predicted, strict=True)) / len(mine)
    apart = largest_difference(tmp_path / "out" / "model", plain)
    print(f"{task}: {equal:.1%} of the predictions equal, weights apart by at most {apart:.1e}")
    assert equal > 0.99
    assert SIZE != "quick" or apart < WEIGHT_TOLERANCE
    print(f"{task}: ours {scores[TASKS[task].main_metric]:.4f}, plain {expected:.4f}")
    assert scores[TASKS[task].main_metric] == pytest.approx(expected, abs=0.01)


def conll(path: Path) -> list[tuple[list[str], list[str]]]:
    sentences: list[tuple[list[str], list[str]]] = []
    for block in path.read_text().split("\n\n"):
        words, tags, last = [], [], "O"
        for line in filter(None, block.split("\n")):
            word, *_, tag = line.split(" ")
            if word == "-DOCSTART-":
                continue
            words.append(word)
            tags.append("B" + tag[1:] if tag != "O" and last[1:] != tag[1:] else tag)
            last = tag
        if words:
            sentences.append((words, tags))
    return sentences


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_conll_scores_equal_a_plain_script(shared_data: Path, tmp_path: Path) -> None:
    from seqeval.metrics import f1_score
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
    )

    (tmp_path / "data").mkdir()
    source = shared_data / "ner" / "conll2003"
    size, epochs = CONLL[SIZE]
    blocks = (source / "eng.train").read_text().split("\n\n")
    sentences = [n for n, b in enumerate(blocks) if b and not b.startswith("-DOCSTART-")]
    end = sentences[size - 1] + 1 if size else len(blocks)
    (tmp_path / "data" / "eng.train").write_text("\n\n".join(blocks[:end]) + "\n\n")
    text = (source / "eng.testa").read_text()
    keep = len(text) if FULL else CONLL_DEV_CHARACTERS
    (tmp_path / "data" / "eng.testa").write_text(
        text[: text.find("\n\n", keep) + 2] if keep < len(text) else text
    )
    model_path = shared_data / "model" / "all-MiniLM-L6-v2"
    scores = ours("conll2003", tmp_path / "data", model_path, tmp_path / "out", epochs)

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    train, dev = (conll(tmp_path / "data" / name) for name in ("eng.train", "eng.testa"))
    kinds = sorted({tag[2:] for _, tags in train for tag in tags if tag != "O"})
    labels = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    torch.manual_seed(SEED)
    model = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=len(labels))

    def encode(words: list[str], tags: list[str]) -> dict:
        row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=128)
        places = row.word_ids()
        numbers = [
            labels.index(tags[w]) if w is not None and w != places[i - 1] else -100
            for i, w in enumerate(places)
        ]
        return {**row, "labels": numbers}

    pad = DataCollatorForTokenClassification(tokenizer)
    plain_training(model, [encode(*sentence) for sentence in train], epochs, pad)
    predicted = []
    with torch.inference_mode():
        for words, tags in dev:
            row = encode(words, tags)
            best = (
                model(**{k: v for k, v in pad([row]).items() if k != "labels"}).logits[0].argmax(-1)
            )
            found = [labels[b] for b, number in zip(best.tolist(), row["labels"]) if number != -100]
            predicted.append(found + ["O"] * (len(words) - len(found)))
    expected = f1_score([tags for _, tags in dev], predicted)
    apart = largest_difference(tmp_path / "out" / "model", model)
    print(f"conll2003: weights apart by at most {apart:.1e}")
    assert SIZE != "quick" or apart < WEIGHT_TOLERANCE
    print(f"conll2003: ours {scores['f1']:.4f}, plain {expected:.4f}")
    assert scores["f1"] == pytest.approx(expected, abs=0.01)
