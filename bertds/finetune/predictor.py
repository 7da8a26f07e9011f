"""Applies a model: fills masks, classifies, tags, answers questions, embeds.

```text
bertds predict --task fill-mask --model M <<< "the capital of france is [MASK] ."
bertds predict --task text-classification --model OUT/model --input texts.txt --out labels.jsonl
bertds predict --task ner --model OUT/model --input sentences.txt
bertds predict --task qa --model OUT/model --input dev-v1.1.json --out predictions.json
bertds predict --task embeddings --model M --input texts.txt --out vectors.npy
```
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertds.errors import ConfigError
from bertds.finetune.features import Example, collate, encode_texts
from bertds.finetune.loop import predict as run_model
from bertds.finetune.loop import to_device
from bertds.finetune.records import Question, Sentence, TextRow
from bertds.finetune.squad_features import Answers
from bertds.finetune.task_data import Rows, Split
from bertds.finetune.task_kinds import encode
from bertds.finetune.tasks import get_task
from bertds.pretrained.transformers_api import (
    TASK_CLASSES,
    load_transformers,
    token_texts,
    tokenizer_of,
)
from bertds.system.atomic_files import atomic_path
from bertds.system.json_fields import parse_json
from bertds.system.logs import log

TASKS = ("fill-mask", "text-classification", "ner", "qa", "embeddings")
POOLINGS = ("mean", "cls", "pooler")


class Predictor:
    """A model with its tokenizer, and one method for each kind of prediction."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        kind = {"embeddings": "encoder"}.get(args.task, args.task)
        self.tokenizer = tokenizer_of(folder)
        self._check_head(folder, args.task)
        self.model = load_transformers(folder, TASK_CLASSES[kind], dtype=torch.float32).eval()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        if args.task == "fill-mask" and args.top > self.model.config.vocab_size:
            raise ConfigError(
                f"--top {args.top}: the vocabulary has only {self.model.config.vocab_size} tokens"
            )
        self.batch_size, self.top, self.pooling = args.batch_size, args.top, args.pooling
        positions = int(self.model.config.max_position_embeddings)
        if args.max_length > positions:
            log.info("texts are truncated to %d tokens, the maximum of the model", positions)
        # SQuAD's usual length; longer windows would only take more memory.
        usual = min(positions, get_task("squad").max_length) if args.task == "qa" else positions
        self.max_length = min(args.max_length or usual, positions)

    @staticmethod
    def _check_head(folder: Path, task: str) -> None:
        """Refuse a model without the head, since transformers would add a random one.

        Raises:
            ConfigError: the architecture of the folder has another head.
        """
        wanted = {
            "text-classification": "SequenceClassification",
            "ner": "TokenClassification",
            "qa": "QuestionAnswering",
            "fill-mask": ("MaskedLM", "PreTraining"),
        }.get(task)
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        found = (config.get("architectures") or [""])[0]
        if wanted and found and not found.endswith(wanted):
            raise ConfigError(
                f"--task {task}: {folder} is a {found}, which does not have the required head"
            )

    def _forward(self, batch: dict[str, torch.Tensor]) -> Any:
        with torch.inference_mode():
            return self.model(**to_device(batch, self.device))

    def _logits(self, examples: Sequence[Example]) -> list[tuple[torch.Tensor, ...]]:
        return run_model(self._forward, examples, self.pad_id, self.batch_size)

    def _decoded(self, task: str, rows: Rows, labels: Sequence[str]) -> Any:
        """Return the predictions of a task that fine-tuning knows, decoded as there."""
        split = Split("input", rows)
        encoded = encode(get_task(task), self.tokenizer, split, labels, self.max_length)
        return encoded.decode(self._logits(encoded.examples))

    def _encode(self, rows: list[TextRow]) -> list[Example]:
        return encode_texts(self.tokenizer, rows, self.max_length)

    def classify(self, rows: list[TextRow]) -> list[dict[str, Any]]:
        """Return label and probability per text; the number itself for a regression model."""
        labels = self.model.config.id2label
        answers: list[dict[str, Any]] = []
        for row, (logits,) in zip(rows, self._logits(self._encode(rows))):
            if len(logits) == 1:
                answers.append({"id": row.id, "score": round(float(logits[0]), 4)})
                continue
            shares = logits.softmax(-1)
            best = int(shares.argmax())
            answers.append(
                {"id": row.id, "label": labels[best], "probability": round(float(shares[best]), 4)}
            )
        return answers

    def fill(self, rows: list[TextRow]) -> list[dict[str, Any]]:
        """Return the most probable words for every mask; an ``error`` for a text without a mask."""
        mask, mask_id = self.tokenizer.mask_token, self.tokenizer.mask_token_id
        answers: list[dict[str, Any]] = []
        examples = self._encode(rows)
        for begin in range(0, len(rows), self.batch_size):
            part = examples[begin : begin + self.batch_size]
            places = [[i for i, t in enumerate(e.input_ids) if t == mask_id] for e in part]
            logits = self._forward(collate(part, self.pad_id)).logits.float().cpu()
            for n, (row, found) in enumerate(zip(rows[begin : begin + len(part)], places)):
                if not found and row.text:
                    error = f"line {row.line}: no {mask} in the first {self.max_length} tokens"
                    answers.append({"id": row.id, "error": error})
                    continue
                masks = []
                for place in found:
                    best = logits[n, place].softmax(-1).topk(self.top)
                    words = token_texts(self.tokenizer, best.indices.tolist())
                    shares = [round(share, 4) for share in best.values.tolist()]
                    masks.append([list(pair) for pair in zip(words, shares)])
                answers.append({"id": row.id, "masks": masks})
        return answers

    def tag(self, sentences: list[Sentence]) -> list[dict[str, Any]]:
        """Return words and tags for each sentence."""
        id2label = self.model.config.id2label
        labels = [id2label[number] for number in range(len(id2label))]
        # Blank lines have no words; they keep their place in the output.
        full = [sentence for sentence in sentences if sentence.words]
        tags = iter(self._decoded("ner", full, labels))
        return [{"words": s.words, "tags": next(tags) if s.words else []} for s in sentences]

    def answer(self, questions: list[Question], *, v2: bool) -> dict[str, str]:
        """Return question id -> answer."""
        answers: Answers = self._decoded("squad_v2" if v2 else "squad", questions, ())
        return answers.texts

    def embed(self, rows: list[TextRow]) -> np.ndarray:
        """Return float32 [texts, hidden size]: the mean of the real tokens, [CLS], or the pooler.

        Raises:
            ConfigError: the model has no pooler.
        """
        examples = self._encode(rows)
        vectors = np.zeros((len(rows), self.model.config.hidden_size), np.float32)
        # Rows of similar length share a batch, which saves padding; the order is restored by
        # number.
        order = sorted(range(len(rows)), key=lambda row: len(examples[row]))
        for begin in range(0, len(order), self.batch_size):
            part = order[begin : begin + self.batch_size]
            batch = collate([examples[row] for row in part], self.pad_id)
            output = self._forward(batch)
            if self.pooling == "pooler":
                if output.pooler_output is None:
                    raise ConfigError("--pooling pooler: this model has no pooler")
                pooled = output.pooler_output
            elif self.pooling == "cls":
                pooled = output.last_hidden_state[:, 0]
            else:
                mask = batch["attention_mask"].to(self.device).unsqueeze(-1)
                pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors[part] = pooled.float().cpu().numpy()
        return vectors


def write_vectors(path: Path, rows: list[TextRow], vectors: np.ndarray) -> None:
    """Write vectors as .npy (only the matrix) or Parquet (columns id and embedding)."""
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            with open(temporary, "wb") as file:
                np.save(file, vectors)
            return
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        column = arrow.FixedSizeListArray.from_arrays(
            arrow.array(vectors.reshape(-1)), vectors.shape[1]
        )
        table = arrow.table({"id": [row.id for row in rows], "embedding": column})
        parquet.write_table(table, temporary)
