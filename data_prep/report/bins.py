"""Bins of histograms: bins of equal width, and bins of equal ratio."""

from __future__ import annotations

import math

import numpy as np


def linear_bins(values: np.ndarray, width: int, end: int) -> tuple[np.ndarray, float]:
    """Count values in bins of ``width`` up to ``end``; the last bin holds all larger values.

    Returns:
        int64 counts, and the position of the median in bins.
    """
    numbers = np.minimum(values // width, end // width)
    counts = np.bincount(numbers, minlength=end // width + 1)
    middle = (float(np.median(values)) + 0.5) / width
    return counts, min(middle, end / width + 0.5)


def octave_bins(values: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]], float]:
    """Count values in bins of equal ratio.

    Returns:
        int64 counts, ticks at round numbers as (position in bins, label), the median's position.
    """
    octaves = np.log2(np.maximum(values, 1))
    low, high = float(octaves.min()), float(octaves.max())
    fine = max(2, min(8, math.ceil(24 / max(1.0, high - low))))  # bins per octave
    first = math.floor(low * fine)
    # The small addition keeps exact powers of two in the bin that begins with them.
    counts = np.bincount(np.floor(octaves * fine + 1e-9).astype(np.int64) - first)
    # A wide range has room for fewer round numbers in each decade.
    steps = (1, 2, 5) if high - low > 5 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = []
    for power in range(int(high * math.log10(2)) + 1):
        for step in steps:
            place = math.log2(step * 10**power) * fine - first
            if 0 <= place <= len(counts) and (step * 10**power) % 1 == 0:
                ticks.append((place, f"{round(step * 10**power):,}"))
    middle = math.log2(max(1.0, float(np.median(values)))) * fine - first
    # At most about nine labels fit under a chart.
    return counts, ticks[:: max(1, -(-len(ticks) // 9))], middle
