"""Pictures of the report, as SVG: text in the page, in the page's colours, sharp at any size.

Drawn by hand and not by matplotlib, so that their bytes depend on the numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bertds.display.html_page import escape

WIDTH, HEIGHT = 520, 242
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 20, 26
_LETTER, _LONGEST_NAME = 7, 34
"""Width of a letter, rather more than most have; letters of a name beside a bar."""

STYLE = """
svg { width:100%; height:auto; display:block; }
svg text { font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
  fill:var(--muted); } svg text.ink { fill:var(--ink); }
svg .bar { fill:var(--accent); } svg .rest { fill:var(--line); }
svg .b1 { fill:#3aa981; } svg .b2 { fill:#e08a2e; } svg .b3 { fill:#8b6fd6; }
svg .grid { stroke:var(--line); stroke-width:1; }
.pictures figure:last-child:nth-child(odd) { grid-column:1/-1; }
.pictures figure:last-child:nth-child(odd) svg { max-width:560px; }
svg .middle { stroke:var(--ink); stroke-width:1.2; stroke-dasharray:4 3; }
"""


def histogram(
    counts: np.ndarray, ticks: Sequence[tuple[float, str]], middle: float | None = None
) -> str:
    """Draw a histogram.

    Args:
        counts: [N], of bins that lie side by side.
        ticks: where labels stand, in bins from the left edge, and what they say.
        middle: where to draw the median's line, in bins from the left edge.
    """
    total = max(1, int(counts.sum()))
    shares = counts / total * 100
    top, step = _nice(float(shares.max(initial=0.0)))
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    unit = width / max(1, len(counts))

    def y(value: float) -> float:
        return _TOP + height * (1 - value / top)

    parts = []
    for number in range(round(top / step) + 1):
        value = number * step
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text x="{_LEFT - 7}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:g} %</text>'
        )
    gap = min(2.0, 0.2 * unit)
    for number, share in enumerate(shares.tolist()):
        if share > 0:
            high = max(0.8, _TOP + height - y(share))  # a rare thing is seen all the same
            parts.append(
                f'<rect class="bar" x="{_LEFT + number * unit + gap / 2:.1f}" '
                f'y="{_TOP + height - high:.1f}" width="{unit - gap:.1f}" height="{high:.1f}" '
                f'rx="{min(2.0, unit / 4):.1f}"/>'
            )
    for place, label in ticks:
        x = _LEFT + place * unit
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        parts.append(
            f'<text x="{min(x, WIDTH - _RIGHT):.1f}" y="{HEIGHT - 8}" '
            f'text-anchor="{anchor}">{escape(label)}</text>'
        )
    if middle is not None:
        x = _LEFT + middle * unit
        parts.append(
            f'<line class="middle" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 14}" '
            f'y2="{_TOP + height}"/>'
        )
        side, anchor = (-5, "end") if x > 0.7 * WIDTH else (5, "start")
        parts.append(
            f'<text class="ink" x="{x + side:.1f}" y="{_TOP - 6}" '
            f'text-anchor="{anchor}">median</text>'
        )
    return _svg(HEIGHT, parts)


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Draw a horizontal bar for each (name, value, what to write behind it)."""
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    rows = [(_shortened(name), value, text) for name, value, text in rows]
    left = max(118, 14 + _LETTER * max((len(name) for name, _, _ in rows), default=0))
    room = WIDTH - left - 150
    parts = []
    for number, (name, value, text) in enumerate(rows):
        y = 6 + number * 28
        width = max(1.5, room * value / largest) if value else 0.0
        parts.append(
            f'<text class="ink" x="{left - 9}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="21" rx="3"/>'
            f'<text x="{left + width + 8:.1f}" y="{y + 15}">{escape(text)}</text>'
        )
    return _svg(12 + 28 * max(1, len(rows)), parts)


def _shortened(name: str) -> str:
    """Return a name that fits beside its bar: the ends of a long one tell most."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:14]}…{name[15 - _LONGEST_NAME :]}"


def shares(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Draw stacked bars: for each name its (part, share) pairs, which make 1 together."""
    left = 74
    room = WIDTH - left - 10
    parts = []
    for number, (name, values) in enumerate(rows):
        y = 4 + number * 54
        parts.append(
            f'<text class="ink" x="{left - 9}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
        )
        x = float(left)
        for place, (label, share) in enumerate(values):
            width = room * share
            colour = ("bar", "b1", "b2", "b3")[place % 4]
            at = left + room * place / len(values)
            parts.append(
                f'<rect class="{colour}" x="{x:.1f}" y="{y}" width="{max(0.0, width - 2):.1f}" '
                f'height="25" rx="3"/>'
                f'<rect class="{colour}" x="{at:.1f}" y="{y + 32}" width="9" height="9" rx="2"/>'
                f'<text x="{at + 14:.1f}" y="{y + 41}">{escape(label)} {share:.1%}</text>'
            )
            x += width
    return _svg(4 + 54 * max(1, len(rows)), parts)


def linear_bins(values: np.ndarray, width: int, end: int) -> tuple[np.ndarray, float]:
    """Count values in bins of ``width`` up to ``end``, all above in a last one; and the median."""
    numbers = np.minimum(values // width, end // width)
    counts = np.bincount(numbers, minlength=end // width + 1)
    middle = (float(np.median(values)) + 0.5) / width
    return counts, min(middle, end / width + 0.5)


def octave_bins(values: np.ndarray) -> tuple[np.ndarray, list[tuple[float, str]], float]:
    """Count values in bins of equal ratio; with ticks at round numbers, and the median's place."""
    octaves = np.log2(np.maximum(values, 1))
    low, high = float(octaves.min()), float(octaves.max())
    fine = max(2, min(8, math.ceil(24 / max(1.0, high - low))))  # bins per octave
    first = math.floor(low * fine)
    counts = np.bincount(np.floor(octaves * fine + 1e-9).astype(np.int64) - first)
    steps = (1, 2, 5) if high - low > 5 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = []
    for power in range(int(high * math.log10(2)) + 1):
        for step in steps:
            place = math.log2(step * 10**power) * fine - first
            if 0 <= place <= len(counts) and (step * 10**power) % 1 == 0:
                ticks.append((place, f"{round(step * 10**power):,}"))
    middle = math.log2(max(1.0, float(np.median(values)))) * fine - first
    return counts, ticks[:: max(1, -(-len(ticks) // 9))], middle


def _nice(highest: float) -> tuple[float, float]:
    """Return an axis' end and step in percent: three to five lines, at round numbers."""
    for step in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 25.0):
        if highest <= 5 * step:
            return max(step, math.ceil(highest / step - 1e-9) * step), step
    return 125.0, 25.0


def _svg(height: float, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{"".join(parts)}</svg>'
