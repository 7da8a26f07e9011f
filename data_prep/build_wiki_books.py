"""Corpora in, training shards out.

    python data_prep/build_wiki_books.py --wiki DUMP... --books DIR... --out DIR --vocab vocab.txt
    python data_prep/build_wiki_books.py show DIR -n 3

The same function serves ``bertds prep``. data_prep/run_stages.py has the stages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: the clone's packages, not this folder's modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bertds.system.run_command import guarded
from bertds.system.start_up import loading

_IMPLEMENTATION = "data_prep.launch"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a corpus, or ``show`` one that is prepared.

    Args:
        argv: arguments; None = the command line's.

    Returns:
        0.

    Raises:
        BertdsError: one line that says what is wrong (``guarded`` prints it).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["show"]:
        from data_prep.report.show_rows import main as show

        return show(arguments[1:])
    with loading(_IMPLEMENTATION):
        from data_prep.launch import execute
        from data_prep.options import parse_args

    return execute(parse_args(arguments), arguments)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
