"""Scores a model on held-out text."""

from __future__ import annotations

import numpy as np
import torch

from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.data.batches import MicroBatch
from bertds.data.loader import open_source, validation_batches
from bertds.data.sources.base import Source
from bertds.data.vocabulary import load_tokenizer_info, warn_of_other_rules
from bertds.errors import CheckpointError, DataError
from bertds.model.bert import PreTrainingOutput
from bertds.monitor.scoring import score
from bertds.pretrained.load import PretrainedModel


def evaluate(
    trained: PretrainedModel, data: DataConfig, split: str, batch: int, max_samples: int = 0
) -> dict[str, float]:
    """Score a model on one split.

    Returns:
        ``loss, mlm_loss, mlm_accuracy``, with the next-sentence head ``nsp_loss, nsp_accuracy``,
        and the counts ``masked`` and ``rows``. For token shards also: ``unigram_entropy`` of the
        split in nats, which is the best loss of a model that knows only word frequencies;
        ``mlm_majority``, the accuracy of always predicting the most frequent token;
        ``tokens_per_word`` and ``mlm_loss_per_word``, which can be compared across vocabularies.

    Raises:
        DataError: the split is missing, or its vocabulary is not that of the model.
    """
    # The seed of the run gives the same masks as the validation during training.
    seed = trained.manifest.get("recipe", {}).get("run", {}).get("seed", 42)
    source = open_source(data, seed, split=split)
    _check_vocabulary(trained, source)
    _check_tables(trained.config, data)
    batches = validation_batches(
        source,
        batch,
        0,
        1,
        seed=seed,
        max_samples=max_samples,
        mask_rate=held_out_mask_rate(data),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.model.to(device)

    def forward(micro_batch: MicroBatch) -> PreTrainingOutput:
        with torch.inference_mode():
            return trained.model(**micro_batch.to(device).model_inputs())

    scores = score(
        batches,
        forward,
        lambda values: torch.tensor(values, dtype=torch.float64),
        trained.config.next_sentence and source.has_pairs,
    )
    counts = source.token_counts()
    if counts is not None:
        scores["unigram_entropy"] = unigram_entropy(counts)
        scores["mlm_majority"] = majority_share(counts)
        per_word = _tokens_per_word(source, counts)
        if per_word:
            scores["tokens_per_word"] = per_word
            scores["mlm_loss_per_word"] = scores["mlm_loss"] * per_word
    return scores


def _check_tables(model: ModelConfig, data: DataConfig) -> None:
    """Check that each position and segment of a row has an embedding."""
    if model.style != "bert":  # the others have neither table
        return
    if data.sequence_length > model.max_position_embeddings:
        raise DataError(
            f"rows of {data.sequence_length} tokens, but the model has only "
            f"{model.max_position_embeddings} positions; set --sequence-length to at most "
            f"{model.max_position_embeddings}"
        )
    if data.pairs != "none" and model.type_vocab_size < 2:
        raise DataError("rows of two segments, but the model has only one (type_vocab_size=1)")


def _tokens_per_word(source: Source, counts: np.ndarray) -> float:
    """Return the tokens per word of a corpus, or 0 if its tokenizer's files are not known."""
    if not source.tokenizer.is_wordpiece:
        return float(counts.sum() / max(1, source.word_count()))
    return tokens_per_word(counts, source.tokenizer.vocabulary()) if source.tokenizer.files else 0.0


def tokens_per_word(counts: np.ndarray, pieces: list[str]) -> float:
    """Return the mean number of pieces per word; punctuation marks count as words.

    Args:
        counts: int64 [V], the number of occurrences of each token.
        pieces: the vocabulary; pieces inside a word begin with ``##``.
    """
    inside = np.array([piece.startswith("##") for piece in pieces])
    return float(counts.sum() / max(1, counts[~inside].sum()))


def unigram_entropy(counts: np.ndarray) -> float:
    """Return the entropy of a token distribution in nats.

    Args:
        counts: int64 [V], how often each token occurs.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def majority_share(counts: np.ndarray) -> float:
    """Return the share of the most frequent token, the baseline of masked-LM accuracy.

    Args:
        counts: int64 [V], how often each token occurs.
    """
    return float(counts.max() / max(1, counts.sum()))


def _check_vocabulary(trained: PretrainedModel, source: Source) -> None:
    tokenizer = source.tokenizer
    if tokenizer.vocab_size != trained.vocab_size:
        raise DataError(
            f"{trained.origin}: its vocabulary has {trained.vocab_size} tokens, but that of the "
            f"data has {tokenizer.vocab_size}; use data prepared with the model's own vocab.txt"
        )
    theirs = trained.manifest.get("tokenizer", {}).get("fingerprint")
    if theirs and theirs != tokenizer.fingerprint:
        raise DataError(
            f"{trained.origin}: its vocabulary differs from that of the data, although both have "
            "the same size; use data prepared with the model's own vocab.txt"
        )
    folder = trained.tokenizer_folder
    if folder is None or not tokenizer.files or theirs:
        return
    own = load_tokenizer_info(folder)
    if own.vocabulary() != tokenizer.vocabulary():
        raise CheckpointError(
            f"{folder}: the vocabulary differs from {tokenizer.main_file}; use data prepared with "
            "the model's own vocab.txt"
        )
    warn_of_other_rules(folder, own, tokenizer)
