"""Score a run or a Hugging Face folder on held-out shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertds.checkpoint.save import locate
from bertds.config.load import load_config
from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config, DataConfig
from bertds.data.loader import open_source, validation_batches
from bertds.data.sources.base import Source
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import EXIT_OK, CheckpointError, ConfigError, DataError
from bertds.pretrained.blimp import FILE as BLIMP_FILE
from bertds.pretrained.blimp import describe, evaluate_blimp, read_pairs
from bertds.pretrained.load import Trained, open_trained
from bertds.pretrained.transformers_api import as_hugging_face_folder, tokenizer_of
from bertds.system.atomic_files import write_json
from bertds.training.validation import score


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds evaluate",
        description="Masked-LM loss and accuracy and next-sentence accuracy on held-out text; with "
        "--blimp, accuracy on BLiMP's minimal pairs instead.",
    )
    parser.add_argument("model", help="a run, a checkpoint, or a Hugging Face folder")
    parser.add_argument("--data", metavar="DIR", help="prepared data (default: the run's own)")
    parser.add_argument("--split", default="validation", help="validation (default) or train")
    parser.add_argument("--vocab", default="", help="vocab.txt, for data without a tokenizer")
    parser.add_argument(
        "--sequence-length", type=int, metavar="S", help="default: the run's, or 128"
    )
    parser.add_argument(
        "--max-predictions", type=int, metavar="P", help="default: the run's, or 20"
    )
    parser.add_argument(
        "--whole-words", action="store_true", help="mask all pieces of a word together: for "
        "comparing vocabularies, since other pieces give a cut word away"
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="rows a pass (32)")
    parser.add_argument("--max-samples", type=int, default=0, metavar="N", help="0 = all (default)")
    parser.add_argument(
        "--blimp", metavar="FOLDER", help="score BLiMP: the folder of its 67 *.jsonl files. A "
        "run's scores are kept in its blimp.json, for its report and model card"
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, metavar="N", help="with --blimp: the first N pairs of each file "
        "(default: all)"
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Score one model and print the result."""
    args = parse_args(argv)
    if args.blimp is not None:
        return _blimp(args)
    if args.limit is not None:
        raise ConfigError("--limit goes with --blimp; --max-samples limits held-out rows")
    trained = open_trained(args.model)
    data = _data_config(trained, args)
    scores = evaluate(trained, data, args.split, args.batch, args.max_samples)
    if args.json:
        print(json.dumps({"model": args.model, "data": data.path, "split": args.split, **scores}))
        return EXIT_OK
    print(f"{args.model} on {data.path} ({args.split}, {data.sequence_length} tokens)")
    for key, value in scores.items():
        print(f"  {key:<16} {value:,.4f}" if value != int(value) else f"  {key:<16} {value:,.0f}")
    return EXIT_OK


def _blimp(args: argparse.Namespace) -> int:
    """Score BLiMP, print the result and keep it with the run."""
    for option in ("data", "vocab", "sequence_length", "max_predictions", "whole_words"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} does not go with --blimp")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: must be at least 1")
    pairs = read_pairs(args.blimp, args.limit or 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # As a Hugging Face folder, so that a run's tokenizer is the very one it is exported with.
    with as_hugging_face_folder(args.model) as folder:
        model = open_trained(folder).model.to(device).eval()
        tokenizer = tokenizer_of(folder)
    result = {
        "model": str(args.model),
        "limit": args.limit,
        **evaluate_blimp(model, tokenizer, pairs, device=device),
    }
    run = Path(args.model)
    if (run / "checkpoints").is_dir():
        write_json(run / BLIMP_FILE, {**result, "step": locate(run).manifest.get("step")})
    if args.json:
        print(json.dumps(result))
        return EXIT_OK
    print(f"{args.model} on BLiMP: {result['pairs']:,} pairs, accuracy in percent (chance: 50)")
    print("\n".join(describe(result)))
    return EXIT_OK


def _data_config(trained: Trained, args: argparse.Namespace) -> DataConfig:
    recipe = trained.manifest.get("recipe", {})
    values: dict[str, Any] = dict(recipe.get("data", {"pairs": "nsp"}))
    path = args.data or values.get("path")
    if not path:
        raise ConfigError("--data is needed: a Hugging Face folder does not name its data")
    values["path"] = path
    values["vocab"] = args.vocab or values.get("vocab", "")
    if args.sequence_length:
        values["sequence_length"] = args.sequence_length
    if args.max_predictions:
        values["max_predictions_per_sequence"] = args.max_predictions
    if not trained.config.next_sentence:
        values["pairs"] = "none"
    if args.whole_words:
        values["whole_word_masking"] = True
    model = {"next_sentence": trained.config.next_sentence}
    config: Config = load_config({"model": model, "data": values})
    return config.data


def evaluate(
    trained: Trained, data: DataConfig, split: str, batch: int, max_samples: int = 0
) -> dict[str, float]:
    """Score a model on one split.

    Returns:
        ``loss, mlm_loss, mlm_accuracy``, with the head ``nsp_loss, nsp_accuracy``, the counts
        ``masked`` and ``rows``. Where the data are token shards also ``unigram_entropy`` of the
        same split in nats, what a model that knows only word frequencies would score at best;
        ``tokens_per_word`` and ``mlm_loss_per_word``, which vocabularies can be compared by.

    Raises:
        DataError: the split is missing, or its vocabulary is not the model's.
    """
    seed = trained.manifest.get("recipe", {}).get("run", {}).get("seed", 42)
    source = open_source(data, seed, split=split)
    _check_vocabulary(trained, source)
    batches = validation_batches(
        source, data, batch, 0, 1, seed=seed, max_samples=max_samples,
        mask_rate=held_out_mask_rate(data),
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.model.to(device)

    def forward(micro_batch: Any) -> Any:
        with torch.inference_mode():
            return trained.model(**micro_batch.to(device).model_inputs())

    scores = score(
        batches,
        forward,
        lambda values: torch.tensor(values, dtype=torch.float64),
        trained.config.next_sentence,
    )
    counts = source.token_counts()
    if counts is not None:
        scores["unigram_entropy"] = unigram_entropy(counts)
        per_word = _tokens_per_word(source, counts)
        if per_word:
            scores["tokens_per_word"] = per_word
            scores["mlm_loss_per_word"] = scores["mlm_loss"] * scores["tokens_per_word"]
    return scores


def _tokens_per_word(source: Source, counts: np.ndarray) -> float:
    """Return the same of a corpus, or 0 where its tokenizer's files are not known."""
    if not source.tokenizer.is_wordpiece:
        return float(counts.sum() / max(1, source.word_count()))
    return tokens_per_word(counts, source.tokenizer.vocabulary()) if source.tokenizer.files else 0.0


def tokens_per_word(counts: np.ndarray, pieces: list[str]) -> float:
    """Return into how many pieces a vocabulary cuts a word, punctuation being words.

    Args:
        counts: int64 [V], how often each token occurs.
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


def _check_vocabulary(trained: Trained, source: Any) -> None:
    tokenizer = source.tokenizer
    if tokenizer.vocab_size != trained.vocab_size:
        raise DataError(
            f"{trained.origin}: its vocabulary has {trained.vocab_size} tokens, the data's "
            f"{tokenizer.vocab_size}; score it on data prepared with its own vocab.txt"
        )
    theirs = trained.manifest.get("tokenizer", {}).get("fingerprint")
    if theirs and theirs != tokenizer.fingerprint:
        raise DataError(f"{trained.origin}: another vocabulary than the data's, of the same size")
    folder = trained.tokenizer_folder
    if folder is None or not tokenizer.files or theirs:
        return
    if load_tokenizer_info(folder).vocabulary() != tokenizer.vocabulary():
        raise CheckpointError(f"{folder}: another vocabulary than {tokenizer.main_file}")
