"""Five fixed prompts of the held-out text, predicted at each validation.

    held-out rows --one mask each--> a micro batch --model--> words, kept in metrics.jsonl

A curve says that the loss falls; the prompts show what that means. They are the same in every
validation of a run and on every rank, since rows and masks depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch
from bertds.data.loader import validation_batches
from bertds.data.sources.base import Source
from bertds.data.vocabulary import TokenizerInfo

COUNT = 5
AROUND = 12
"""Tokens that are shown on each side of the mask."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows with one masked position each."""

    batch: MicroBatch
    texts: list[str]
    """What surrounds each mask."""
    answers: list[str]
    pieces: list[str]
    """The vocabulary."""

    @classmethod
    def of(cls, source: Source, config: Config) -> Prompts | None:
        """Choose the prompts of a run; None where the vocabulary or the rows are missing."""
        tokenizer = source.tokenizer
        if not tokenizer.files:
            return None
        rows = validation_batches(
            source,
            config.data,
            COUNT,
            0,
            1,
            seed=config.run.seed,
            max_samples=COUNT,
            mask_rate=held_out_mask_rate(config.data),
        )
        batch = next(iter(rows), None)
        if batch is None or not batch.masked:
            return None
        return cls._from_batch(batch, tokenizer)

    @classmethod
    def _from_batch(cls, batch: MicroBatch, tokenizer: TokenizerInfo) -> Prompts:
        pieces = tokenizer.vocabulary()
        ids = batch.input_ids.clone()
        ids[batch.masked_lm_positions] = batch.masked_lm_ids  # the text as it was
        bounds = batch.cu_seqlens.tolist()
        chosen: list[int] = []
        texts: list[str] = []
        for begin, end in pairwise(bounds):
            places = [p for p in batch.masked_lm_positions.tolist() if begin <= p < end]
            # Whole words first: a word's inside is mostly given away by its beginning.
            words = [p for p in places if pieces[int(ids[p])].lstrip("Ġ").isalpha()]
            places = words or places
            if not places:
                continue
            place = places[len(places) // 2]
            chosen.append(place)
            shown = [pieces[token] for token in ids[begin:end].tolist()]
            shown[place - begin] = pieces[tokenizer.special_ids["mask"]]
            first = max(1, place - begin - AROUND)  # without [CLS]
            texts.append(as_text(shown[first : place - begin + AROUND + 1], tokenizer))
        positions = torch.tensor(chosen, dtype=torch.int64)
        answers = ids[positions]
        ids[positions] = tokenizer.special_ids["mask"]
        prompts = batch._replace(
            input_ids=ids,
            masked_lm_positions=positions,
            masked_lm_ids=answers,
            masked=len(chosen),
        )
        words_of = [as_text([pieces[token]], tokenizer) for token in answers.tolist()]
        shown_pieces = [as_text([piece], tokenizer) for piece in pieces]
        return cls(prompts, texts, words_of, shown_pieces)

    def lines(self, predictions_M: torch.Tensor) -> list[dict[str, str]]:
        """Return each prompt with its answer and what the model gives, as the metrics keep it.

        Args:
            predictions_M: int64, the likeliest word of each masked position.
        """
        return [
            {"text": text, "answer": answer, "predicted": self.pieces[word]}
            for text, answer, word in zip(
                self.texts, self.answers, predictions_M.tolist(), strict=True
            )
        ]


def as_text(pieces: list[str], tokenizer: TokenizerInfo) -> str:
    """Join pieces of a vocabulary for a person to read; what cannot be printed becomes ``?``."""
    if tokenizer.is_wordpiece:
        text = " ".join(pieces).replace(" ##", "")
    else:
        text = "".join(pieces).replace("Ġ", " ").replace("▁", " ")
    return "".join(letter if letter.isprintable() else "?" for letter in text).strip()
