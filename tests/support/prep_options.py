"""The options that the tests of preparation share."""

from __future__ import annotations

from pathlib import Path

WITH_ROWS = "--shard-tokens 2000 --instances 64:10 --dupe-factor 2 --compression none"


def wiki_options(out: Path, wiki: Path, vocab: Path, *more: str, settings: str = "") -> list[str]:
    """Return a command line for one worker, 10% of the documents held out.

    Args:
        out: where the shards go.
        wiki: the dumps.
        vocab: the vocabulary's file.
        more: further options; the last one of a name counts.
        settings: options of a module's tests, separated by spaces.
    """
    files = ["--wiki", str(wiki), "--out", str(out), "--vocab", str(vocab)]
    usual = "--validation-fraction 0.1 --workers 1"
    return [*files, *usual.split(), *settings.split(), *more]
