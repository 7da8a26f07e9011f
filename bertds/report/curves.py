"""The charts of runs: curves over the steps, with phases joined and several runs in one chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

from bertds.display.charts import (
    LETTER,
    Chart,
    Margins,
    logarithmic,
    mark_points,
    percent,
    smooth,
    thousands,
)
from bertds.display.theme import Theme
from bertds.display.words import cells, shorten
from bertds.report.run_view import Chain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_LOSS_WIDTH, _LOSS_MARGINS = 10.4, Margins(left=0.4, bottom=0.46)
"""Of the chart of losses, in inches; the rows of the legend are in its upper margin."""
_LEGEND_COLUMNS, _LEGEND_ENTRY, _LONGEST_NAME = 4, 40.0, 100
"""Maximum number of columns; points of an entry without its text; Latin letters of a name."""


def charts_of(chains: list[Chain]) -> dict[str, Chart]:
    """Return every chart for which there is data, by the name of its file."""

    def chart(title: str, paint: Callable[[Axes, list[Chain], Theme], None], note: str) -> Chart:
        def whole(axes: Axes, theme: Theme) -> None:
            paint(axes, chains, theme)
            _finish(axes, chains, theme)

        return Chart(title=title, paint=whole, note=note, margins=Margins(top=0.2))

    held_out = "Points: held-out documents." + vocabulary_note(chains)
    # Each row: file name, key that a run must have, title, painter, note below the chart.
    found = {
        name: chart(title, paint, note)
        for name, key, title, paint, note in (
            (
                "mlm_accuracy",
                "mlm_accuracy",
                "Masked-LM accuracy",
                _Curve("mlm_accuracy", in_percent=True, validation=True),
                held_out,
            ),
            (
                "nsp_accuracy",
                "nsp_accuracy",
                "Next-sentence accuracy",
                _Curve("nsp_accuracy", in_percent=True, validation=True, level=0.5),
                f"{held_out} Line: chance.",
            ),
            ("learning_rate", "lr", "Learning rate", _Curve("lr", plain=True), ""),
            (
                "gradient_norm",
                "grad_norm",
                "Gradient norm, before clipping",
                _Curve("grad_norm", log=True),
                "",
            ),
            (
                "trust_ratio",
                "trust_ratio",
                "LAMB's trust ratios",
                _trust,
                "Line: median over tensors. Band: minimum to maximum.",
            ),
            (
                "throughput",
                "tokens_per_second",
                "Real tokens per second",
                _Curve("tokens_per_second"),
                "Padding is not counted.",
            ),
            (
                "mfu",
                "mfu",
                "Model FLOP utilization",
                _Curve("mfu", in_percent=True),
                "Relative to the device's dense peak.",
            ),
            (
                "tflops",
                "tflops",
                "TFLOP/s per device",
                _Curve("tflops"),
                "Operations that the model requires; recomputation is not counted.",
            ),
            (
                "stalls",
                "stall_seconds",
                "Waiting for the data loader",
                _stalls,
                "Fraction of the time between two log lines.",
            ),
            (
                "memory",
                "memory_gib",
                "Peak memory of rank 0 (GiB)",
                _Curve("memory_gib", plain=True),
                "",
            ),
        )
        if any(chain.trust_ratios() if key == "trust_ratio" else chain.has(key) for chain in chains)
    }
    if any(chain.has("mlm_loss") for chain in chains):
        found = {"loss": _loss_chart(chains), **found}
    return found


def vocabulary_note(chains: list[Chain]) -> str:
    """Return a note on runs whose losses cannot be compared, or ""."""
    known = {run.vocabulary for chain in chains for run in chain.runs} - {""}
    if len(known) < 2:
        return ""
    return (
        f" These runs have {len(known)} different vocabularies. Their losses and accuracies are "
        "per token and cannot be compared; bertds evaluate --whole-words gives a loss per word."
    )


def _finish(axes: Axes, chains: list[Chain], theme: Theme) -> None:
    """Mark phase borders (dashed; shared ones once) and restarts (small triangles)."""
    for border in sorted({border for chain in chains for border in chain.borders()}):
        axes.axvline(border, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    for number, chain in enumerate(chains):
        for step in chain.restarts():
            axes.plot(
                [step],
                [0.0],
                marker="^",
                markersize=6,
                color=_colour(theme, number),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
    axes.xaxis.set_major_formatter(thousands(axes.xaxis))


def _colour(theme: Theme, number: int) -> str:
    return theme.series[number % len(theme.series)]


def _loss_chart(chains: list[Chain]) -> Chart:
    def paint(axes: Axes, theme: Theme) -> None:
        # Given to the legend itself, which omits artists whose label begins with an underscore.
        named: list[tuple[Artist, str]] = []
        for number, chain in enumerate(chains):
            named += _loss(axes, chain, theme, _colour(theme, number), first=number == 0)
        axes.legend(
            *zip(*named),
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=columns,
            columnspacing=1.6 + 0.4 * wide,
        )
        _finish(axes, chains, theme)
        for border in sorted({border for chain in chains for border in chain.borders()}):
            _say(axes, theme, "phase 2", (border, 1), (5, -10))
        axes.set_xlabel("optimizer step, counted over all phases")

    names = [_name(chain) for chain in chains]
    columns = _legend_columns(names)
    triangles = " Triangles: restarts." if any(chain.restarts() for chain in chains) else ""
    # The page's font draws a wide letter wider than the box that matplotlib's own has for it.
    wide = max(cells(name) - len(name) for name in names)
    rows = ceil((len(chains) + 1) / columns)
    return Chart(
        title="Masked-LM loss (nats)",
        paint=paint,
        note="Thin: each log line. Thick: running mean. Points: held-out documents. Dotted: word "
        "frequencies alone, on held-out documents." + triangles + vocabulary_note(chains),
        width=_LOSS_WIDTH,
        height=3.7 + 0.2 * rows,
        margins=replace(_LOSS_MARGINS, top=0.08 + 0.22 * rows),
        wide=True,
    )


def _name(chain: Chain) -> str:
    """Return the name of a chain for the legend; of a very long one, the middle is omitted."""
    return shorten(chain.title, _LONGEST_NAME, _LONGEST_NAME // 2 - 1)


def _legend_columns(names: list[str]) -> int:
    """Return the number of legend columns that fit; the font of a page may be a wide one."""
    room = 72 * (_LOSS_WIDTH - _LOSS_MARGINS.left - _LOSS_MARGINS.right)
    widest = _LEGEND_ENTRY + LETTER * max(map(cells, names))
    return min(_LEGEND_COLUMNS, max(1, int(room / widest)))


def _say(
    axes: Axes, theme: Theme, text: str, place: tuple[float, float], shift: tuple[float, float]
) -> None:
    """Write a word at a step, at ``place[1]`` of the height, moved by ``shift`` points."""
    axes.annotate(
        text,
        place,
        xycoords=("data", "axes fraction"),
        xytext=shift,
        textcoords="offset points",
        fontsize=8.5,
        color=theme.muted,
    )


def _loss(
    axes: Axes, chain: Chain, theme: Theme, colour: str, *, first: bool
) -> list[tuple[Artist, str]]:
    """Draw the losses of one chain; each phase has its own running mean.

    Returns:
        The entries of the legend.
    """
    named: list[tuple[Artist, str]] = []
    for offset, run in zip(chain.offsets(), chain.runs):
        lines = [line for line in run.train if line.get("mlm_loss") is not None]
        if not lines:
            continue
        steps = [offset + line["step"] for line in lines]
        values = [line["mlm_loss"] for line in lines]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        mean = smooth(values, max(1, len(values) // 25))
        (curve,) = axes.plot(steps, mean, color=colour, linewidth=2.0)
        named = named or [(curve, _name(chain))]
    entropies = chain.series("unigram_entropy", split="validation")[1]
    if entropies:
        axes.axhline(entropies[-1], color=colour, linestyle=":", linewidth=1.2)
    steps, values = chain.series("mlm_loss", split="validation")
    points = mark_points(axes, theme, colour, steps, values, size=6.5)
    return [*named, (points, "held-out")] if first and steps else named


@dataclass(frozen=True)
class _Curve:
    """Draws one value of the training lines, thin, and its running mean, thick."""

    key: str
    in_percent: bool = False
    validation: bool = False
    """Whether held-out values are marked as points."""
    log: bool = False
    plain: bool = False
    """The value has no noise, so there is no running mean."""
    level: float | None = None
    """A level to compare with, such as chance."""

    def __call__(self, axes: Axes, chains: list[Chain], theme: Theme) -> None:
        factor = 100.0 if self.in_percent else 1.0
        for number, chain in enumerate(chains):
            colour = _colour(theme, number)
            steps, values = chain.series(self.key)
            values = [value * factor for value in values]
            if self.plain:
                axes.plot(steps, values, color=colour, linewidth=1.8)
            else:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
                _in_phases(axes, chain, steps, values, colour)
            if self.validation:
                steps, values = chain.series(self.key, split="validation")
                mark_points(axes, theme, colour, steps, [value * factor for value in values])
        if self.level is not None:
            dots = (0, (1, 2))
            axes.axhline(self.level * factor, color=theme.muted, linewidth=0.8, linestyle=dots)
        self._label(axes)

    def _label(self, axes: Axes) -> None:
        if self.in_percent:
            axes.yaxis.set_major_formatter(percent)
        elif self.log:
            logarithmic(axes)
        else:
            axes.set_ylim(bottom=0)
            if self.key == "tokens_per_second":
                axes.yaxis.set_major_formatter(thousands(axes.yaxis))
            if self.key == "lr":
                axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _in_phases(
    axes: Axes, chain: Chain, steps: list[float], values: list[float], colour: str
) -> None:
    """Draw a running mean that starts again with each phase."""
    edges = [*chain.offsets(), float("inf")]
    for begin, end in pairwise(edges):
        chosen = [(s, v) for s, v in zip(steps, values) if begin < s <= end]
        if chosen:
            mean = smooth([v for _, v in chosen], max(1, len(chosen) // 15))
            axes.plot([s for s, _ in chosen], mean, color=colour, linewidth=1.8)


def _trust(axes: Axes, chains: list[Chain], theme: Theme) -> None:
    for number, chain in enumerate(chains):
        for place, (steps, triples) in enumerate(chain.trust_ratios().values()):
            colour = _colour(theme, number)
            low, middle, high = zip(*triples)
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            style = ("-", "--", ":")[place % 3]
            axes.plot(steps, middle, color=colour, linewidth=1.8, linestyle=style)
    logarithmic(axes)


def _stalls(axes: Axes, chains: list[Chain], theme: Theme) -> None:
    highest = 0.0
    for number, chain in enumerate(chains):
        steps, seconds = chain.series("seconds")
        _, stalled = chain.series("stall_seconds")
        shares = [100 * s / max(t, 1e-9) for s, t in zip(stalled, seconds)]
        axes.plot(steps[: len(shares)], shares, color=_colour(theme, number), linewidth=1.4)
        highest = max(highest, *shares, 0.0)
    axes.set_ylim(0, max(5.0, 1.1 * highest))
    axes.yaxis.set_major_formatter(percent)
