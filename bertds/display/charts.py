"""The charts of the project's pages.

In a page a chart is an inline SVG. Its text stays text, and its colours are variables of the page,
so that one drawing serves the light and the dark theme. Curves are a ``Chart``, which matplotlib
draws; it can also be written as a PNG in one theme. Bars are a ``BarChart``, which a template
draws: every preparation draws some, and to import matplotlib takes as long as to prepare several
books. The bytes depend only on the contents and, for curves, on matplotlib's version.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertds.display import html_page
from bertds.display.fonts import OWN, Fonts
from bertds.display.theme import LIGHT, Theme
from bertds.display.words import cells, shorten

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FONT_SIZE = 9.0
_WIDTH = 5.1
"""Width of a chart in inches."""
LETTER, _LONGEST_NAME = 0.64 * FONT_SIZE, 34
"""Width of a wide letter in points; maximum width of a name left of a bar, in Latin letters."""

# In an SVG these colours are placeholders, which are replaced by variables of the style sheet.
_VARIABLES = {f"#0000{n:02x}": name for n, name in enumerate(LIGHT.colours(), 1)}
_SVG_THEME = Theme(
    **{name.replace("-", "_"): c for c, name in _VARIABLES.items() if "series" not in name},
    series=tuple(colour for colour, name in _VARIABLES.items() if "series" in name),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """Space around the axes, in inches."""

    left: float = 0.55
    right: float = 0.22
    top: float = 0.12
    bottom: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart of curves, drawn only when it is needed."""

    title: str
    paint: Callable[[Axes, Theme], None]
    note: str = ""
    width: float = _WIDTH
    """Inches."""
    height: float = 2.5
    """Inches."""
    margins: Margins = Margins()
    wide: bool = False
    """The chart occupies a whole row of the page."""

    def elements(self) -> str:
        """Return the content of the page's ``svg`` element, [0, 72 width] x [0, 72 height]."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._save(_SVG_THEME, buffer, None, format="svg", metadata=nothing)
        # The part before it is the document's head and a style, which the page has already.
        text = buffer.getvalue().split("</defs>", 1)[1].rpartition("</svg>")[0]
        # Only elements that others refer to need an id, and text has the font of the page.
        text = re.sub(r'(?<=<g) id="[^"]*"| font-family: [^;"]*;', "", text)
        text = text.replace("xlink:href", "href")
        for colour, name in _VARIABLES.items():
            text = text.replace(colour, f"var(--{name})")
        return re.sub(r"\s*\n\s*", "\n", text)

    def png(self, theme: Theme, fonts: Fonts | None = None) -> bytes:
        """Return the chart as a PNG file in one theme.

        Args:
            theme: the colours.
            fonts: those of all charts of a report; they collect the letters that no font has.
        """
        buffer = io.BytesIO()
        self._save(
            theme, buffer, fonts or Fonts(), format="png", dpi=144, metadata={"Software": None}
        )
        return buffer.getvalue()

    def _save(
        self,
        theme: Theme,
        buffer: io.StringIO | io.BytesIO,
        fonts: Fonts | None,
        **options: Any,
    ) -> None:
        import matplotlib
        from matplotlib.figure import Figure  # not pyplot, which would choose a window system
        from matplotlib.text import Text as FigureText

        with matplotlib.rc_context(_style(theme)):
            figure = Figure(figsize=(self.width, self.height))
            axes = figure.subplots()
            self._place(figure)
            axes.grid(axis="x", visible=False)
            axes.margins(x=0.01)
            self.paint(axes, theme)
            if fonts is not None:
                fonts.apply([text for text in figure.findobj(FigureText) if text.get_text()])
            with warnings.catch_warnings():
                # A run's name may be in any script. The page shows it in a font of the reader's
                # system; here only its width is needed.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure.savefig(buffer, **options)

    def _place(self, figure: Figure) -> None:
        """Set fixed margins, since the page may show the text in another font."""
        figure.subplots_adjust(
            left=self.margins.left / self.width,
            right=1 - self.margins.right / self.width,
            bottom=self.margins.bottom / self.height,
            top=1 - self.margins.top / self.height,
        )


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.card,
        "axes.facecolor": theme.card,
        "savefig.facecolor": theme.card,
        "text.color": theme.ink,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "grid.color": theme.line,
        "font.size": FONT_SIZE,
        "font.family": OWN,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "text.parse_math": False,  # a run's name may contain dollar signs
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "bertds",  # ids in the file are the same in every run
    }


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over the last ``window`` values (fewer at the beginning)."""
    result, total = [], 0.0
    for number, value in enumerate(values):
        total += value
        if number >= window:
            total -= values[number - window]
        result.append(total / min(number + 1, window))
    return result


def thousands(axis: Axis) -> Callable[..., str]:
    """Return a formatter that uses one unit for all labels of an axis: 5,000, or from 10k on 5k."""

    def label(value: float, _: object = None) -> str:
        highest = max(map(abs, axis.get_view_interval()))
        for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
            if highest >= least and value:
                return f"{value / unit:g}{letter}"
        return f"{value:,g}"

    return label


def percent(value: float, _: object = None) -> str:
    """Return the label of an axis in percent."""
    return f"{value:g}%"


def logarithmic(axes: Axes) -> None:
    """Use a logarithmic scale, with labels such as 0.02, 0.05, 0.1 instead of exponents.

    A range of less than a factor of four stays linear, since it would show a single label.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.dataLim.intervaly
    if low > 0 and high < 4 * low:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=()))


def mark_points(
    axes: Axes,
    theme: Theme,
    colour: str,
    steps: Sequence[float],
    values: Sequence[float],
    *,
    size: float = 4.5,
) -> Line2D:
    """Draw single values as hollow points; return them for a legend."""
    (points,) = axes.plot(
        steps,
        values,
        linestyle="",
        marker="o",
        markersize=size,
        markerfacecolor=theme.card,
        markeredgecolor=colour,
        markeredgewidth=size / 3.2,
        zorder=4,
    )
    return points


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
    width: float = _WIDTH
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
    left, right, top, bottom = 40.0, 72 * _WIDTH - 18.0, 18.0, 151.0
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
    longest = (72 * _WIDTH - left) / 1.42  # leaves space for the text after the longest bar
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
    left, full = 36.0, 72 * _WIDTH - 36.0 - 7.0
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
