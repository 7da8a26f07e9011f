"""The console script ``bertds``: one name for each thing that can be done."""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    del argv
    return 0
