"""The charts of curves on the project's pages.

In a page a chart is an inline SVG. Its text stays text, and its colours are variables of the page,
so that one drawing serves the light and the dark theme. matplotlib draws it; it can also be
written as a PNG in one theme. The bytes depend only on the contents and on matplotlib's version.
Bars are in ``bar_charts.py``.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertds.display.fonts import OWN, Fonts
from bertds.display.theme import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FONT_SIZE = 9.0
WIDTH = 5.1
"""Width of a chart in inches."""
LETTER = 0.64 * FONT_SIZE
"""Width of a wide letter in points."""

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
    width: float = WIDTH
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
