"""The charts of bars on the project's pages: inline SVGs, which a template draws.

Every preparation draws some, and to import matplotlib, which draws the curves of ``charts.py``,
takes as long as to prepare several books. The bytes depend only on the contents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertds.display import html_page
from bertds.display.charts import FONT_SIZE, LETTER, WIDTH, percent
from bertds.display.words import cells, shorten

if TYPE_CHECKING:
    import numpy as np

_LONGEST_NAME = 34
"""Maximum width of a name left of a bar, in Latin letters."""


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, in points from the top left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str = "series-0"
    """Name of the page's variable; see ``Theme.colours``."""


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line, in points."""

    x: float
    y: float
    to_x: float
    to_y: float
    colour: str = "line"
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A text, in points; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    colour: str = "muted"
    anchor: str = "start"


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """One chart of bars. It is drawn in this order: lines, boxes, marks, texts."""

    title: str
    height: float
    """Inches."""
    boxes: Sequence[Box]
    texts: Sequence[Text]
    lines: Sequence[Line] = ()
    marks: Sequence[Line] = ()
    """Lines above the boxes."""
    note: str = ""
    width: float = WIDTH
    """Inches."""
    wide: bool = False

    def elements(self) -> str:
        """Return the content of the page's ``svg`` element, [0, 72 width] x [0, 72 height]."""
        return html_page.render("bar_chart.svg.j2", chart=self, font_size=FONT_SIZE)


def histogram(
    title: str,
    counts: np.ndarray,
    ticks: Sequence[tuple[float, str]],
    middle: float | None = None,
    note: str = "",
) -> BarChart:
    """Return a histogram, in percent.

    Args:
        title: title of the chart.
        counts: [N], counts of adjacent bins.
        ticks: positions of the labels, in bins from the left edge, and their text. A label that
            would touch the previous one is omitted.
        middle: position of the median's line, in bins from the left edge.
        note: a line below the chart.
    """
    # All coordinates are points (1/72 inch) from the top left corner.
    left, right, top, bottom = 40.0, 72 * WIDTH - 18.0, 18.0, 151.0
    bins = max(1, len(counts))
    shares = [100 * count / max(1, int(counts.sum())) for count in counts.tolist()]
    highest = max(shares, default=0.0) or 1.0
    levels = _round_levels(highest)

    def x(place: float) -> float:
        return left + (right - left) * place / bins

    def y(share: float) -> float:
        return bottom + (top - bottom) * share / levels[-1]

    lines = [Line(left, y(level), right, y(level)) for level in levels]
    texts = [Text(left - 4, y(level) + 3, percent(level), anchor="end") for level in levels]
    boxes = []
    for number, share in enumerate(shares):
        if share:
            begin, upper = x(number + 0.06), y(max(0.006 * highest, share))  # visible if rare
            boxes.append(Box(begin, upper, x(number + 0.94) - begin, bottom - upper))
    free = 0.0  # right edge of the previous label
    for place, label in ticks:
        half = LETTER * len(label) / 2
        if x(place) - half >= free:
            texts.append(Text(x(place), bottom + 11, label, anchor="middle"))
            free = x(place) + half
    marks = []
    if middle is not None:
        marks.append(Line(x(middle), top - 8, x(middle), bottom, "ink", dashed=True))
        # The label is placed on the side of the line that has more space.
        shift, anchor = (-4, "end") if middle > 0.7 * bins else (4, "start")
        texts.append(Text(x(middle) + shift, top - 3, "median", "ink", anchor))
    return BarChart(
        title=title, note=note, height=2.4, lines=lines, boxes=boxes, marks=marks, texts=texts
    )


def _round_levels(highest: float) -> list[float]:
    """Return at most six evenly spaced round numbers, from 0 to ``highest`` or slightly above."""
    unit = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit * 5 >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def bars(title: str, rows: Sequence[tuple[str, float, str]], note: str = "") -> BarChart:
    """Return a chart with a horizontal bar for each (name, value, text after the bar)."""
    names = [shorten(name, _LONGEST_NAME, 14) for name, _, _ in rows]
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    left = max(84.0, 10 + LETTER * max(map(cells, names), default=0))
    longest = (72 * WIDTH - left) / 1.42  # leaves space for the text after the longest bar
    row, thickness = 19.5, 14.5
    boxes, texts = [], []
    for number, (name, (_, value, text)) in enumerate(zip(names, rows)):
        centre = 1.5 + row * (number + 0.5)
        length = longest * max(value / largest, 0.006) if value else 0.0
        boxes.append(Box(left, centre - thickness / 2, length, thickness))
        texts.append(Text(left - 5, centre + 3, name, "ink", "end"))
        texts.append(Text(left + length + 5, centre + 3, text))
    height = (row * max(1, len(rows)) + 4.5) / 72
    return BarChart(title=title, note=note, height=height, boxes=boxes, texts=texts)


def shares(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], note: str = ""
) -> BarChart:
    """Return stacked bars: for each name its (part, share) pairs, whose shares sum to 1."""
    left, full = 36.0, 72 * WIDTH - 36.0 - 7.0
    row, thickness, key, gap = 37.5, 19.0, 7.0, 1.3
    boxes, texts = [], []
    for number, (name, parts) in enumerate(rows):
        upper = 3 + row * number
        texts.append(Text(left - 4, upper + thickness / 2 + 3, name, "ink", "end"))
        begin = left
        for place, (label, share) in enumerate(parts):
            colour = f"series-{(0, 2, 1, 4)[place % 4]}"
            boxes.append(Box(begin, upper, max(0.0, full * share - gap), thickness, colour))
            begin += full * share
            at, baseline = left + full * place / len(parts), upper + thickness + 11.5
            boxes.append(Box(at, baseline - key + 0.5, key, key, colour))
            texts.append(Text(at + key + 3, baseline, f"{label} {share:.1%}"))
    height = (row * max(1, len(rows)) + 3) / 72
    return BarChart(title=title, note=note, height=height, boxes=boxes, texts=texts)
