"""Fixed prompts, predicted at each validation: five held-out rows, or the lines of a file.

    held-out rows --one mask each--> a micro batch --model--> words, written to metrics.jsonl
    validation.prompts ------------^

A curve says that the loss falls; the prompts show what that means. They are the same in every
validation of a run and on every rank, since rows and masks depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch
from bertds.data.formats.plain_text import sentence_encoder
from bertds.data.loader import validation_batches
from bertds.data.sources.base import Source
from bertds.data.tokenizer_json import WORD_START
from bertds.data.vocabulary import TokenizerInfo
from bertds.errors import ConfigError, DataError, reason_of

MASK = "[MASK]"
"""How a file of prompts writes the masked position, whatever the vocabulary calls it."""
COUNT = 5
"""Number of prompts that are taken from held-out rows."""
AROUND = 12
"""Tokens that are shown on each side of the mask."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows with one masked position each."""

    batch: MicroBatch
    texts: list[str]
    """The text around each mask."""
    answers: list[str]
    """The original word at each mask."""
    pieces: list[str]
    """The vocabulary, as shown to a reader; a predicted id is its index."""

    @classmethod
    def of(cls, source: Source, config: Config) -> Prompts | None:
        """Choose the prompts of a run; None if there is no vocabulary or no held-out row.

        Raises:
            ConfigError, DataError: ``validation.prompts`` cannot be used.
        """
        tokenizer = source.tokenizer
        file = config.validation.prompts
        if not tokenizer.files:
            if file:
                raise ConfigError(
                    f"validation.prompts={file}: the data does not include a vocabulary; set "
                    "data.vocab"
                )
            return None
        if file:
            return cls.from_file(Path(file), tokenizer, config.data.sequence_length)
        # By default the prompts are the first held-out rows, in the order of validation.
        rows = validation_batches(
            source,
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
    def from_file(cls, path: Path, tokenizer: TokenizerInfo, sequence_length: int) -> Prompts:
        """Read prompts from a file: on each line a text with one [MASK], a tab, the answer.

        Raises:
            DataError: the file cannot be read, or a line cannot be used; names the line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"validation.prompts={path}: cannot be read ({reason_of(error)})"
            ) from None
        encode = sentence_encoder(tokenizer)
        special = tokenizer.special_ids
        rows: list[np.ndarray] = []
        places: list[int] = []
        answers: list[int] = []
        texts: list[str] = []
        # Build one row per line: [CLS] left [MASK] right [SEP].
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            text, _, answer = (part.strip() for part in line.partition("\t"))
            left, *rest = text.split(MASK)
            if len(rest) != 1 or not answer:
                raise DataError(
                    f"{path}: line {number}: must be a text with one {MASK}, a tab, and the answer"
                )
            # Encode each part with its context, and remove the mark of a word start.
            left, right = left.strip(), rest[0].strip()
            parts = encode([(left, ""), (answer, left), (right, answer)])
            before, word, after = (part & ~WORD_START for part in parts)
            if len(word) != 1 or int(word[0]) == special["unk"]:
                raise DataError(
                    f"{path}: line {number}: the answer {answer!r} is not a single token of the "
                    "vocabulary; choose an answer that is"
                )
            rows.append(
                np.concatenate(
                    [[special["cls"]], before, [special["mask"]], after, [special["sep"]]]
                )
            )
            if len(rows[-1]) > sequence_length:
                raise DataError(
                    f"{path}: line {number}: {len(rows[-1])} tokens, but data.sequence_length is "
                    f"{sequence_length}; shorten the text"
                )
            # +1 for the [CLS] in front.
            places.append(1 + len(before))
            answers.append(int(word[0]))
            texts.append(text)
        if not rows:
            raise DataError(f"{path}: contains no prompts")
        return cls(
            _one_mask_per_row(rows, places, answers, sequence_length),
            texts,
            *_words(answers, tokenizer),
        )

    @classmethod
    def _from_batch(cls, batch: MicroBatch, tokenizer: TokenizerInfo) -> Prompts:
        pieces = tokenizer.vocabulary()
        ids = batch.input_ids.clone()
        ids[batch.masked_lm_positions] = batch.masked_lm_ids  # undo the masking
        bounds = batch.cu_seqlens.tolist()
        chosen: list[int] = []
        texts: list[str] = []
        # Choose one masked position per row, and show the text around it.
        for begin, end in pairwise(bounds):
            places = [p for p in batch.masked_lm_positions.tolist() if begin <= p < end]
            # Prefer whole words: the beginning of a word mostly gives away the rest of it.
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
        # Mask only the chosen positions again.
        positions = torch.tensor(chosen, dtype=torch.int64)
        answers = ids[positions]
        ids[positions] = tokenizer.special_ids["mask"]
        prompts = batch._replace(
            input_ids=ids,
            masked_lm_positions=positions,
            masked_lm_ids=answers,
            masked=len(chosen),
        )
        return cls(prompts, texts, *_words(answers.tolist(), tokenizer))

    def lines(self, predictions_M: torch.Tensor) -> list[dict[str, str]]:
        """Return each prompt with its answer and the prediction, as written to metrics.jsonl.

        Args:
            predictions_M: int64 [M], the most likely token id at each masked position.
        """
        return [
            {"text": text, "answer": answer, "predicted": self.pieces[word]}
            for text, answer, word in zip(
                self.texts, self.answers, predictions_M.tolist(), strict=True
            )
        ]


def _words(answers: list[int], tokenizer: TokenizerInfo) -> tuple[list[str], list[str]]:
    """Return the answers and the whole vocabulary as they are shown."""
    shown = [as_text([piece], tokenizer) for piece in tokenizer.vocabulary()]
    return [shown[token] for token in answers], shown


def _one_mask_per_row(
    rows: list[np.ndarray], places: list[int], answers: list[int], sequence_length: int
) -> MicroBatch:
    """Return rows with one mask each as a micro batch."""
    lengths = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return MicroBatch(
        input_ids=ids,
        segment_ids=torch.zeros_like(ids),
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        masked_lm_positions=torch.from_numpy(starts[:-1] + np.array(places)),
        masked_lm_ids=torch.tensor(answers, dtype=torch.int64),
        next_sentence_labels=None,
        rows=len(rows),
        sequence_length=sequence_length,
        masked=len(rows),
    )


def as_text(pieces: list[str], tokenizer: TokenizerInfo) -> str:
    """Join vocabulary pieces into readable text; an unprintable character becomes ``?``."""
    if tokenizer.is_wordpiece:
        text = " ".join(pieces).replace(" ##", "")
    else:
        text = "".join(pieces).replace("Ġ", " ").replace("▁", " ")
    return "".join(letter if letter.isprintable() else "?" for letter in text).strip()
