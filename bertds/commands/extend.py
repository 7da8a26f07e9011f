"""``bertds extend``: a model with more words."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import EXIT_OK
from bertds.pretrained.extend_vocabulary import extend
from bertds.pretrained.output_folder import check_output


def main(argv: list[str] | None = None) -> int:
    """Extend one model's vocabulary."""
    parser = argparse.ArgumentParser(
        prog="bertds extend",
        description="Give a model new pieces, each starting as the mean of its old split; then "
        "prepare the domain's text with DIR/vocab.txt and train with init.from=DIR.",
    )
    parser.add_argument("model", help="a name of `bertds models`, a run, a folder")
    parser.add_argument("out", type=Path, metavar="DIR", help="the Hugging Face folder to write")
    parser.add_argument("--words", type=Path, metavar="FILE", help="pieces to add, one a line")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="a vocabulary, or a model's name, to take instead",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    args = parser.parse_args(argv)
    check_output(args.out, overwrite=args.overwrite)
    added, unsplit = extend(
        args.model, args.out, words=args.words, vocab=args.vocab, overwrite=args.overwrite
    )
    print(f"wrote {args.out}: {added:,} new pieces, {unsplit:,} of them without an old split")
    return EXIT_OK
