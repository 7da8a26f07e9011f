from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bertds.finetune.features import Example, collate, encode_sentences, epoch_batches
from bertds.finetune.loop import (
    TorchStepper,
    TrainSettings,
    learning_rate_at,
    mean_loss,
    predict,
    train,
)
from bertds.finetune.records import Sentence

LENGTHS = [(7 * n) % 50 + 3 for n in range(333)]


@pytest.mark.parametrize("batching", ["length", "random"])
def test_each_row_once_per_epoch(batching: str) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            batches = list(epoch_batches(LENGTHS, 16, batching, generator))  # type: ignore[arg-type]
            assert sorted(row for batch in batches for row in batch) == list(range(333))
            assert sorted(map(len, batches)) == [13] + [16] * 20


def test_batches_by_length_have_little_padding_and_a_random_order() -> None:
    def padding(batching: str) -> float:
        batches = list(epoch_batches(LENGTHS, 16, batching, torch.Generator().manual_seed(1)))  # type: ignore[arg-type]
        slots = sum(max(LENGTHS[row] for row in batch) * len(batch) for batch in batches)
        return 1 - sum(LENGTHS) / slots

    assert padding("length") < 0.08 < 0.3 < padding("random")
    firsts = {
        LENGTHS[next(epoch_batches(LENGTHS, 16, "length", torch.Generator().manual_seed(s)))[0]]
        for s in range(12)
    }
    assert len(firsts) > 4  # not the shortest batch first


def test_schedule_is_transformers_own() -> None:
    from transformers import get_linear_schedule_with_warmup

    settings = TrainSettings(learning_rate=2.0, warmup_ratio=0.17)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.17 * 41), 41)
    for step in range(41):
        assert learning_rate_at(step, 41, settings) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def examples(count: int) -> list[Example]:
    chance = torch.Generator().manual_seed(3)
    result = []
    for n in range(count):
        length = 4 + n % 9
        ids = torch.randint(5, 24, (length,), generator=chance).tolist()
        result.append(Example(ids, [0] * length, {"labels": n % 2}))
    return result


def fresh(tiny_bert: Path) -> torch.nn.Module:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(9)
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)


def test_weights_equal_those_of_a_plain_loop(tiny_bert: Path) -> None:
    """Dropout, order, decay groups, clipping and schedule, all at once."""
    from transformers import get_linear_schedule_with_warmup

    rows = examples(50)
    settings = TrainSettings(learning_rate=1e-2, epochs=2, batch_size=8, batching="random")
    model = fresh(tiny_bert)
    report = train(TorchStepper(model, settings, 0), rows, settings)
    assert report.steps == 14 and math.isfinite(report.last_loss)

    plain = fresh(tiny_bert)
    decayed = [p for n, p in plain.named_parameters() if "LayerNorm" not in n and "bias" not in n]
    others = [p for n, p in plain.named_parameters() if "LayerNorm" in n or "bias" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 1, 14)
    torch.manual_seed(42)
    shuffle = torch.Generator().manual_seed(42)
    plain.train()
    for _ in range(2):
        order = torch.randperm(50, generator=shuffle).tolist()
        for begin in range(0, 50, 8):
            plain(**collate([rows[i] for i in order[begin : begin + 8]], 0)).loss.backward()
            # torch's own norm of float32 numbers on a CPU is low by up to 1e-3.
            grads = [p.grad.double().flatten() for p in plain.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(plain.parameters(), 1.0, torch.cat(grads).norm())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    untrained = fresh(tiny_bert).state_dict()
    for name, value in plain.state_dict().items():
        # A key's bias shifts all scores of a query alike: its gradient is rounding, and Adam makes
        # steps of that, other ones on every kind of CPU.
        if not name.endswith("key.bias"):
            assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name
    assert not torch.allclose(untrained["classifier.weight"], plain.classifier.weight, atol=1e-3)


def test_two_runs_are_equal_and_another_seed_is_not(tiny_bert: Path) -> None:
    def weights(seed: int, precision: str = "fp32") -> torch.Tensor:
        settings = TrainSettings(
            learning_rate=1e-3, epochs=1, batch_size=8, seed=seed, precision=precision
        )  # type: ignore[arg-type]
        model = fresh(tiny_bert)
        train(TorchStepper(model, settings, 0), examples(40), settings)
        return model.state_dict()["classifier.weight"].clone()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), weights(1, "bf16"))
    assert torch.allclose(weights(1), weights(1, "bf16"), atol=5e-3)


def test_predictions_keep_the_order_and_do_not_depend_on_the_batch(tiny_bert: Path) -> None:
    model = fresh(tiny_bert).eval()
    rows = examples(37)

    def forward(batch: dict[str, torch.Tensor]) -> object:
        with torch.inference_mode():
            return model(**batch)

    for size in (1, 5, 64):
        logits = predict(forward, rows, 0, batch_size=size)
        for row, (value,) in zip(rows, logits):
            alone = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            assert torch.allclose(value, alone, atol=1e-5)


def test_long_sentences_are_cut_and_every_word_is_learned_once(tiny_bert: Path) -> None:
    from bertds.pretrained.transformers_api import tokenizer_of

    tokenizer = tokenizer_of(tiny_bert)
    words = ["film", "goods", "\u200b", "plot", "bads", "the"] * 6  # the zero-width one vanishes
    tags = ["O", "B-X", "O", "I-X", "B-Y", "O"] * 6
    labels = ("O", "B-X", "I-X", "B-Y", "I-Y")
    sentences = [Sentence(words, tags, 1), Sentence(["a"], ["O"], 9)]
    rows, places = encode_sentences(tokenizer, sentences, labels, 10)
    assert max(map(len, rows)) == 10 and len(rows) > 4
    seen = [(place.sentence, word) for place in places for word, _ in place.places]
    kept = [n for n, word in enumerate(words) if word != "\u200b"]
    assert seen == [(0, n) for n in kept] + [(1, 0)]
    learned = [number for row in rows for number in row.targets["labels"] if number >= 0]
    assert learned == [labels.index(tags[n]) for n in kept] + [0]


def test_a_batch_with_only_the_end_of_a_word_is_passed_over(tiny_bert: Path) -> None:
    """The mean of its loss is over no token."""
    from transformers import AutoModelForTokenClassification

    from bertds.pretrained.transformers_api import tokenizer_of

    words, tags = ["film", "plot", "goods"], ["O", "O", "B-X"]  # goods: good ##s
    rows, _ = encode_sentences(
        tokenizer_of(tiny_bert), [Sentence(words, tags, 1)], ("O", "B-X", "I-X"), 5
    )
    assert [len(row) for row in rows] == [5, 3] and set(rows[1].targets["labels"]) == {-100}
    model = AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=3)
    settings = TrainSettings(learning_rate=1e-3, epochs=1, batch_size=1, batching="random")
    report = train(TorchStepper(model, settings, 0), rows, settings)
    assert report.steps == 2 and math.isfinite(report.last_loss)


def test_the_loss_of_a_span_does_not_depend_on_padding(tiny_bert: Path) -> None:
    """Without padding it is that of transformers."""
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(tiny_bert).eval()
    rows = [
        Example(
            list(range(5, 5 + length)), [0] * length, {"start_positions": 1, "end_positions": 2}
        )
        for length in (4, 9)
    ]
    alone = [float(model(**collate([row], 0)).loss.detach()) for row in rows]
    for row, loss in zip(rows, alone, strict=True):
        assert float(mean_loss(model, collate([row], 0)).detach()) == pytest.approx(loss, rel=1e-6)
    together = float(mean_loss(model, collate(rows, 0)).detach())
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)
