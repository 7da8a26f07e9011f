"""``bertds train``: the training loop of ``bertds/train.py``, also by a NeMo configuration."""

from __future__ import annotations

import sys

from bertds import train
from bertds.train import parse_args

__all__ = ["main", "parse_args"]


def main(argv: list[str] | None = None) -> int:
    """Train; ``--nemo-config`` translates a file first. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument.startswith("--nemo-config") for argument in arguments):
        from bertds.commands.train_nemo import main as train_by_nemo

        return train_by_nemo(arguments)
    return train.main(arguments)
