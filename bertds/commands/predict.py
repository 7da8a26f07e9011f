"""``bertds predict``: fills masks, classifies, tags words, answers questions, embeds texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertds.errors import EXIT_OK, ConfigError, DataError
from bertds.finetune.predict_inputs import read_questions, read_texts, read_words
from bertds.finetune.predictor import POOLINGS, TASKS, Predictor, write_vectors
from bertds.pretrained.transformers_api import as_hugging_face_folder
from bertds.system.arguments import CommandParser
from bertds.system.atomic_files import check_file_place, write_text
from bertds.system.idle_options import given_options
from bertds.system.logs import start_logging


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds predict",
        description="Use a pre-trained or fine-tuned model on a file or standard input.",
        epilog="Input: one text per line, or .csv/.tsv/.jsonl with a text column. For ner: words "
        "separated by spaces, CoNLL columns, or .jsonl with tokens. For qa: SQuAD .json, "
        "or .jsonl with question and context. Output: one JSON line per text or input "
        "line (also for a blank line). For embeddings: .npy or .parquet.",
    )
    add = parser.add_argument
    add("--task", required=True, choices=TASKS)
    add("--model", required=True, help="a name listed by `bertds models`, a run or a folder")
    add("--input", default="-", metavar="FILE", help="input file; - = standard input (default)")
    add("--out", default="-", metavar="FILE", help="output file; - = standard output (default)")
    add("--top", type=int, default=5, metavar="N", help="number of answers per mask (default: 5)")
    add(
        "--pooling",
        choices=POOLINGS,
        default="mean",
        help="how token vectors are combined (default: mean)",
    )
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="number of rows per forward pass (default: 32)",
    )
    add(
        "--max-length",
        type=int,
        default=0,
        metavar="N",
        help="maximum number of tokens (default: as in the model; qa: 384)",
    )
    add("--v2", action="store_true", help="qa: allow questions without an answer (SQuAD 2.0)")
    args = parser.parse_args(argv)
    given = given_options(parser, args)
    for option, task in (("top", "fill-mask"), ("pooling", "embeddings"), ("v2", "qa")):
        if option in given and args.task != task:
            raise ConfigError(
                f"--{option} can only be used with --task {task}, not with {args.task}"
            )
    return args


def main(argv: list[str] | None = None) -> int:
    """Predict, and write the results.

    Returns:
        0.

    Raises:
        ConfigError: an option is invalid.
        DataError: the input is malformed, or some texts have no answer.
    """
    args = parse_args(argv)
    if args.task == "embeddings" and not args.out.endswith((".npy", ".parquet")):
        raise ConfigError(f"--out {args.out}: embeddings are written to a .npy or .parquet file")
    if args.batch_size < 1 or args.top < 1:
        raise ConfigError("--batch-size and --top must be at least 1")
    if args.max_length != 0 and args.max_length <= 4:
        raise ConfigError(f"--max-length {args.max_length}: must be 0 (as in the model) or above 4")
    if args.out != "-":
        check_file_place(args.out)
    start_logging(is_main=True)
    # The input is read first, so that its errors are reported before the model is loaded.
    if args.task == "qa":
        questions = read_questions(args.input)
        _write_answers(args, _predictor(args).answer(questions, v2=args.v2))
    elif args.task == "embeddings":
        rows = read_texts(args.input)
        write_vectors(Path(args.out), rows, _predictor(args).embed(rows))
    else:
        answers: list[Any]
        if args.task == "ner":
            sentences = read_words(args.input)
            answers = _predictor(args).tag(sentences)
        else:
            rows = read_texts(args.input)
            predictor = _predictor(args)
            answers = predictor.fill(rows) if args.task == "fill-mask" else predictor.classify(rows)
        _write_lines(args.out, answers)
        errors = [a["error"] for a in answers if isinstance(a, dict) and "error" in a]
        if errors:  # all answers are written, but the exit code must not report success
            first = errors[0]
            if len(errors) > 1:
                first = f"{len(errors)} texts have no answer; the first: {first}"
            raise DataError(first)
    return EXIT_OK


def _predictor(args: argparse.Namespace) -> Predictor:
    with as_hugging_face_folder(args.model) as folder:
        return Predictor(folder, args)


def _write_lines(out: str, answers: Sequence[Any]) -> None:
    text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    sys.stdout.write(text) if out == "-" else write_text(out, text)


def _write_answers(args: argparse.Namespace, answers: dict[str, str]) -> None:
    if args.out.endswith(".json"):  # the official format
        write_text(args.out, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
    else:
        _write_lines(args.out, [{"id": key, "answer": text} for key, text in answers.items()])
