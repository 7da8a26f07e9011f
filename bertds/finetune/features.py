"""Turns rows into tokens and batches into tensors, and decides the order of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch

from bertds.data.scripts import gap
from bertds.finetune.records import Sentence, TextRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that is not scored (the value of transformers)."""
BUCKET_BATCHES = 50
"""Number of batches that are shuffled together before they are sorted by length."""

Batching = Literal["length", "random"]


@dataclass(slots=True)
class Example:
    """One row of tokens with its targets."""

    input_ids: list[int]
    segment_ids: list[int]
    targets: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model: ``labels``, or ``start_positions`` and ``end_positions``."""

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TextRow],
    max_length: int,
    *,
    regression: bool = False,
) -> list[Example]:
    """Encode texts or pairs; if too long, the longer text is truncated at its end."""
    if not rows:
        return []
    pairs = [row.pair or "" for row in rows] if rows[0].pair is not None else None
    encoded = tokenizer(
        [row.text for row in rows],
        pairs,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    examples = []
    for row, ids, segments in zip(rows, encoded["input_ids"], encoded["token_type_ids"]):
        targets = {}
        if row.label is not None:
            targets["labels"] = float(row.label) if regression else int(row.label)
        examples.append(Example(ids, segments, targets))
    return examples


@dataclass(slots=True)
class WordPlaces:
    """The positions of the first piece of each word, where the tag of the word is predicted."""

    sentence: int
    places: list[tuple[int, int]]
    """(word, position in the example)."""


def space_matters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a word after a space has other tokens, as "it" and " it" in byte-level BPE."""
    apart = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    together: list[int] = tokenizer("a b", add_special_tokens=False)["input_ids"]
    return bool(apart != together)


def in_running_text(words: Sequence[str], spaces: bool) -> list[str]:
    """Return the words in such a form that each has the tokens that it has within a text.

    Args:
        words: words of a sentence, or letters in a script without spaces.
        spaces: the result of :func:`space_matters`.
    """
    if not spaces:
        return list(words)
    return [*words[:1], *(gap(before, word) + word for before, word in pairwise(words))]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sentence],
    labels: Sequence[str],
    max_length: int,
) -> tuple[list[Example], list[WordPlaces]]:
    """Encode words; the first piece of a word carries its tag.

    A sentence longer than ``max_length`` becomes several examples, so that each of its words is
    learned and predicted once. A word for which the tokenizer returns nothing (control characters)
    has no position; its prediction is O.

    Returns:
        The examples, and for each the positions of its words.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    spaces = space_matters(tokenizer)
    encoded = tokenizer(
        [in_running_text(sentence.words, spaces) for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    examples: list[Example] = []
    places: list[WordPlaces] = []
    last: dict[int, int] = {}  # sentence -> last word seen: a word may continue in the next example
    owners = encoded["overflow_to_sample_mapping"]
    for row, owner in enumerate(map(int, owners)):
        tags = sentences[owner].tags
        first_pieces = []
        targets = [IGNORED] * len(encoded["input_ids"][row])
        for position, word in enumerate(encoded.word_ids(row)):
            if word is None or word <= last.get(owner, -1):
                continue
            last[owner] = word
            first_pieces.append((word, position))
            if tags is not None:
                # A type that is not in the training data is scored (as a miss) but not learned.
                targets[position] = numbers.get(tags[word], IGNORED)
        examples.append(
            Example(
                encoded["input_ids"][row],
                encoded["token_type_ids"][row],
                {"labels": targets} if tags is not None else {},
            )
        )
        places.append(WordPlaces(owner, first_pieces))
    return examples, places


def scored_terms(examples: Sequence[Example]) -> int:
    """Return the number of terms in a batch's mean loss: labelled tokens, or rows.

    It is 0 if the batch has only the ends of words that began in other examples.
    """
    if examples and isinstance(examples[0].targets.get("labels"), list):
        return sum(number != IGNORED for e in examples for number in e.targets["labels"])
    return len(examples)


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Return a batch padded to its longest row, as the model's arguments."""
    longest = max(len(example) for example in examples)
    batch: dict[str, torch.Tensor] = {
        "input_ids": _padded([e.input_ids for e in examples], longest, pad_id),
        "token_type_ids": _padded([e.segment_ids for e in examples], longest, 0),
        "attention_mask": _padded([[1] * len(e) for e in examples], longest, 0),
    }
    for name, first in examples[0].targets.items():
        values = [example.targets[name] for example in examples]
        if isinstance(first, list):
            batch[name] = _padded(values, longest, IGNORED)
        else:
            batch[name] = torch.tensor(values)  # float32 for scores, int64 for labels
    return batch


def _padded(rows: list[list[int]], longest: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def epoch_batches(
    lengths: Sequence[int], batch_size: int, batching: Batching, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yield the batches of one epoch as lists of row numbers; each row occurs once.

    Args:
        lengths: number of tokens of each row.
        batch_size: rows in a batch; the last batch may have fewer.
        batching: ``random`` cuts one permutation. ``length`` sorts every ``BUCKET_BATCHES`` batches
            of the permutation by length, so that a batch has little padding, and then shuffles the
            batches.
        generator: draws one permutation of the rows (and for ``length`` one of the batches).
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if batching == "length":
        stretch = batch_size * BUCKET_BATCHES
        order = [
            row
            for begin in range(0, len(order), stretch)
            for row in sorted(order[begin : begin + stretch], key=lambda row: lengths[row])
        ]
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    if batching == "length":
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    yield from batches
