"""Types of command-line options that argparse lacks."""

from __future__ import annotations

import argparse
import math


def finite(text: str) -> float:
    """Return an option's number; ``float`` alone would also accept ``nan`` and ``inf``.

    Raises:
        ArgumentTypeError: not a finite number; argparse prints the message and exits with 2.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value
