"""Scores a run or a Hugging Face folder on held-out shards, or on BLiMP."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bertds.api.evaluation import HeldOut, held_out, held_out_scores
from bertds.checkpoint.find import locate
from bertds.errors import EXIT_OK, ConfigError
from bertds.pretrained.blimp import FILE as BLIMP_FILE
from bertds.pretrained.blimp import describe, evaluate_blimp, read_pairs
from bertds.pretrained.load import load_pretrained
from bertds.pretrained.transformers_api import as_hugging_face_folder, tokenizer_of
from bertds.system.arguments import CommandParser
from bertds.system.atomic_files import write_json
from bertds.system.idle_options import given_options, refuse_together


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds evaluate",
        description="Compute masked-LM loss, masked-LM accuracy and next-sentence accuracy on "
        "held-out text. With --blimp, compute accuracy on the minimal pairs of BLiMP "
        "instead.",
    )
    parser.add_argument(
        "model",
        help="a run, a checkpoint, a Hugging Face folder, or a name listed by `bertds models`",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="prepared data (default: the data that the run validates on)",
    )
    parser.add_argument(
        "--split", default="validation", help="split to score: validation (default) or train"
    )
    parser.add_argument(
        "--vocab", default="", help="vocab.txt or a model name, for data without a tokenizer"
    )
    parser.add_argument(
        "--sequence-length",
        type=int,
        metavar="S",
        help="maximum row length in tokens (default: the run's value, or 128 without a run)",
    )
    parser.add_argument(
        "--max-predictions",
        type=int,
        metavar="P",
        help="maximum number of masked positions per row (default: the run's value, or 20 "
        "without a run)",
    )
    parser.add_argument(
        "--whole-words",
        action="store_true",
        help="mask all pieces of a word together; use this to compare vocabularies",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="number of rows per forward pass (default: 32)",
    )
    parser.add_argument(
        "--max-samples",
        type=int,
        default=0,
        metavar="N",
        help="maximum number of rows; 0 = all (default)",
    )
    parser.add_argument(
        "--blimp",
        metavar="FOLDER",
        help="score BLiMP from the folder with its 67 *.jsonl files; the scores of a run are "
        "saved in its blimp.json, for the report and the model card",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="with --blimp: use only the first N pairs of each file (default: all)",
    )
    parser.add_argument(
        "--last-weights",
        action="store_true",
        help="score the weights of the last step instead of their moving average "
        "(schedule.ema_decay)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    given = given_options(parser, args)
    if "limit" in given and "blimp" not in given:
        raise ConfigError("--limit requires --blimp; use --max-samples to limit held-out rows")
    refuse_together(given, "blimp", [*HeldOut.__dataclass_fields__, "last_weights"])
    return args


def main(argv: list[str] | None = None) -> int:
    """Score one model and print the result."""
    args = parse_args(argv)
    if args.blimp is not None:
        return _blimp(args)
    names = [name for name in HeldOut.__dataclass_fields__ if name != "average"]
    chosen = {name: getattr(args, name) for name in names}
    rows = held_out(**chosen, average=not args.last_weights)
    scores, data = held_out_scores(args.model, rows)
    if args.json:
        print(json.dumps({"model": args.model, "data": data.path, "split": args.split, **scores}))
        return EXIT_OK
    print(f"{args.model} on {data.path} ({args.split}, {data.sequence_length} tokens)")
    width = max(map(len, scores))
    for key, value in scores.items():
        print(f"  {key:<{width}}  {value:,.{0 if value == int(value) else 4}f}")
    return EXIT_OK


def _blimp(args: argparse.Namespace) -> int:
    """Score BLiMP, print the result, and save it in the run folder if the model is a run."""
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: must be at least 1")
    pairs = read_pairs(args.blimp, args.limit or 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Through a Hugging Face folder, so that the tokenizer is the one a run is exported with.
    with as_hugging_face_folder(args.model) as folder:
        model = load_pretrained(folder).model.to(device).eval()
        tokenizer = tokenizer_of(folder)
    result = {
        "model": str(args.model),
        "limit": args.limit,
        **evaluate_blimp(model, tokenizer, pairs),
    }
    # The report and the model card read the scores from this file.
    run = Path(args.model)
    if (run / "checkpoints").is_dir():
        write_json(run / BLIMP_FILE, {**result, "step": locate(run).manifest.get("step")})
    if args.json:
        print(json.dumps(result))
        return EXIT_OK
    print(f"{args.model} on BLiMP: {result['pairs']:,} pairs, accuracy in percent (chance: 50)")
    print("\n".join(describe(result)))
    return EXIT_OK
