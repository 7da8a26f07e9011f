"""The charts of the project's pages, drawn by matplotlib.

In a page a chart is an inline SVG: its text is text, and its colours are the page's, so that one
drawing serves light and dark. As a file of its own it is a PNG in one theme. The bytes depend only
on what is drawn and on matplotlib's version.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bertds.display.theme import LIGHT, Theme

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FONT_SIZE = 9.0
_LETTER, _LONGEST_NAME = 0.08, 34
"""Width of a wide letter in inches; letters of a name to the left of a bar."""

# Drawn in an SVG, each of these is replaced by the variable of the page's style sheet.
_VARIABLES = {f"#0000{n:02x}": name for n, name in enumerate(LIGHT.colours(), 1)}
_SVG_THEME = Theme(
    **{name.replace("-", "_"): c for c, name in _VARIABLES.items() if "series" not in name},
    series=tuple(colour for colour, name in _VARIABLES.items() if "series" in name),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """Room around the axes, in inches."""

    left: float = 0.55
    right: float = 0.1
    top: float = 0.12
    bottom: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart; it is drawn when it is asked for."""

    title: str
    paint: Callable[[Axes, Theme], None]
    note: str = ""
    width: float = 5.1
    """Inches."""
    height: float = 2.5
    """Inches."""
    margins: Margins = Margins()
    wide: bool = False
    """It takes a whole row of the page."""

    def elements(self) -> str:
        """Return what is in the ``svg`` element of a page, [0, 72 width] x [0, 72 height]."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._save(_SVG_THEME, buffer, format="svg", metadata=nothing)
        # What comes first is the document's head and a style, which the page has too.
        text = buffer.getvalue().split("</defs>", 1)[1].rpartition("</svg>")[0]
        # Only what a fill or a marker refers to needs a name, and text has the page's font.
        text = re.sub(r'(?<=<g) id="[^"]*"| font-family: [^;"]*;', "", text)
        text = text.replace("xlink:href", "href")
        for colour, name in _VARIABLES.items():
            text = text.replace(colour, f"var(--{name})")
        return re.sub(r"\s*\n\s*", "\n", text)

    def png(self, theme: Theme) -> bytes:
        """Return it as a file in one theme."""
        buffer = io.BytesIO()
        self._save(theme, buffer, format="png", dpi=144, metadata={"Software": None})
        return buffer.getvalue()

    def _save(self, theme: Theme, buffer: io.StringIO | io.BytesIO, **options: Any) -> None:
        import matplotlib
        from matplotlib.figure import Figure  # not pyplot, which would choose a window system

        with matplotlib.rc_context(_style(theme)):
            figure = Figure(figsize=(self.width, self.height))
            axes = figure.subplots()
            self._place(figure)
            axes.grid(axis="x", visible=False)
            axes.margins(x=0.01)
            self.paint(axes, theme)
            figure.savefig(buffer, **options)

    def _place(self, figure: Figure) -> None:
        """Leave the margins: fixed ones, as text of the page may have another font."""
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
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "bertds",  # names within the file do not change from run to run
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
    """Return a formatter that writes all labels of an axis alike: 5,000 or, from 10k on, 5k."""

    def label(value: float, _: object = None) -> str:
        highest = max(map(abs, axis.get_view_interval()))
        for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
            if highest >= least and value:
                return f"{value / unit:g}{letter}"
        return f"{value:,g}"

    return label


def percent(value: float, _: object = None) -> str:
    """Write the label of an axis in percent."""
    return f"{value:g} %"


def logarithmic(axes: Axes) -> None:
    """Scale by powers, labelled 0.02, 0.05, 0.1 and not by exponents.

    What spans less than a factor of four stays linear: such an axis would show a single label.
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
    label: str | None = None,
) -> None:
    """Draw single values as hollow points."""
    axes.plot(
        steps,
        values,
        linestyle="",
        marker="o",
        markersize=size,
        markerfacecolor=theme.card,
        markeredgecolor=colour,
        markeredgewidth=size / 3.2,
        zorder=4,
        label=label,
    )


def histogram(
    title: str,
    counts: np.ndarray,
    ticks: Sequence[tuple[float, str]],
    middle: float | None = None,
    note: str = "",
) -> Chart:
    """Return a histogram, in percent.

    Args:
        title: of the chart.
        counts: [N], of adjacent bins.
        ticks: positions of the labels, in bins from the left edge, and their text.
        middle: position of the median's line, in bins from the left edge.
        note: a line below the chart.
    """
    shares = counts / max(1, int(counts.sum())) * 100

    def paint(axes: Axes, theme: Theme) -> None:
        highest = float(shares.max(initial=0.0)) or 1.0
        places = [n for n, share in enumerate(shares.tolist()) if share > 0]
        heights = [max(0.006 * highest, shares[n]) for n in places]  # a rare value is seen too
        axes.bar([n + 0.5 for n in places], heights, width=0.88, color=theme.series[0])
        axes.set_xlim(0, max(1, len(counts)))
        axes.locator_params(axis="y", nbins=5)
        axes.set_ylim(0, axes.yaxis.get_major_locator().tick_values(0, highest)[-1])
        axes.yaxis.set_major_formatter(percent)
        axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
        axes.tick_params(axis="x", length=0)
        if middle is None:
            return
        line = axes.axvline(middle, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
        line.set(ydata=(0, 1.06), clip_on=False)
        to_the_left = middle > 0.7 * len(counts)
        axes.annotate(
            "median",
            (middle, 1.02),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if to_the_left else 4, 0),
            textcoords="offset points",
            ha="right" if to_the_left else "left",
            color=theme.ink,
        )

    # Room for the word above the median's line, and for half of the last label.
    margins = Margins(top=0.25, right=0.14)
    return Chart(title=title, paint=paint, note=note, height=2.4, margins=margins)


def bars(title: str, rows: Sequence[tuple[str, float, str]], note: str = "") -> Chart:
    """Return a chart with a horizontal bar for each (name, value, text at its end)."""
    names = [_shortened(name) for name, _, _ in rows]
    values = [value for _, value, _ in rows]
    largest = max(values, default=0.0) or 1.0
    height = 0.27 * max(1, len(rows)) + 0.06

    def paint(axes: Axes, theme: Theme) -> None:
        _only_bars(axes, 1.42 * largest, len(rows))
        seen = [max(value, 0.006 * largest) if value else 0.0 for value in values]
        axes.barh(range(len(rows)), seen, height=0.74, color=theme.series[0])
        axes.yaxis.set_visible(False)
        write = partial(axes.annotate, va="center_baseline", textcoords="offset points")
        for number, (name, (_, value, text)) in enumerate(zip(names, rows)):
            write(name, (0, number), (-5, 0), ha="right", color=theme.ink)
            write(text, (value, number), (5, 0), color=theme.muted)

    left = max(1.16, 0.14 + _LETTER * max(map(len, names), default=0))
    margins = Margins(left=left, right=0.0, top=0.02, bottom=0.04)
    return Chart(title=title, paint=paint, note=note, height=height, margins=margins)


def _only_bars(axes: Axes, end: float, rows: int) -> None:
    """Set up axes for ``rows`` horizontal bars up to ``end``, the first one at the top."""
    axes.set_xlim(0, end)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(visible=False)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _shortened(name: str) -> str:
    """Return a name that fits to the left of its bar; the ends of a long one say most."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:14]}…{name[15 - _LONGEST_NAME :]}"


def shares(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], note: str = ""
) -> Chart:
    """Return a chart of stacked bars: for each name its (part, share) pairs, which sum to 1."""
    height = 0.52 * max(1, len(rows)) + 0.04

    def paint(axes: Axes, theme: Theme) -> None:
        _only_bars(axes, 1.0, len(rows))
        axes.set_yticks([n - 0.18 for n in range(len(rows))], [n for n, _ in rows], color=theme.ink)
        for number, (_, parts) in enumerate(rows):
            begin = 0.0
            for place, (label, share) in enumerate(parts):
                colour = theme.series[(0, 2, 1, 4)[place % 4]]
                axes.barh(number - 0.18, max(0.0, share - 0.004), 0.5, begin, color=colour)
                key = place / len(parts)
                axes.plot([key + 0.012], [number + 0.3], "s", color=colour, markersize=6)
                axes.annotate(
                    f"{label} {share:.1%}",
                    (key + 0.032, number + 0.3),
                    va="center_baseline",
                    color=theme.muted,
                )
                begin += share

    margins = Margins(left=0.5, right=0.1, top=0.02, bottom=0.02)
    return Chart(title=title, paint=paint, note=note, height=height, margins=margins)
