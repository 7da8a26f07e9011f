"""``bertds extend``: adds tokens to the vocabulary of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.display.words import count
from bertds.errors import EXIT_OK
from bertds.pretrained.extend_vocabulary import extend
from bertds.pretrained.output_folder import check_output
from bertds.system.arguments import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds extend",
        description="Add tokens to the vocabulary of a model. The embedding of each new token "
        "starts as the mean of the tokens that it was split into before. Then "
        "prepare the domain's text with DIR/vocab.txt and train with init.from=DIR.",
    )
    parser.add_argument("model", help="a name listed by `bertds models`, a run or a folder")
    parser.add_argument(
        "out", type=Path, metavar="DIR", help="output folder, in Hugging Face format"
    )
    parser.add_argument("--words", type=Path, metavar="FILE", help="tokens to add, one per line")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="a whole new vocabulary instead of --words: a file, a folder or a model name",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in DIR")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Extend one model's vocabulary."""
    args = parse_args(argv)
    check_output(args.out, overwrite=args.overwrite)
    added, unsplit = extend(
        args.model, args.out, words=args.words, vocab=args.vocab, overwrite=args.overwrite
    )
    text = f"wrote {args.out}: {count(added, 'new token')}"
    if unsplit:
        text += (
            f"; {count(unsplit, 'token')} that the old vocabulary cannot split got the embedding "
            "of [UNK]"
        )
    print(text)
    return EXIT_OK
