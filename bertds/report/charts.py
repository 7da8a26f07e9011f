"""The pictures of a report, drawn by matplotlib, each in a light and a dark dress."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bertds.report.run_view import Chain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Dress:
    """Colours of one appearance."""

    name: str
    ground: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Dress(
    name="light",
    ground="#ffffff",
    ink="#1d2433",
    muted="#5c677d",
    grid="#e6e9ef",
    lines=("#2563c9", "#d9730d", "#0b8a6a", "#b0307e", "#6d4fc4", "#8a6d00"),
)
DARK = Dress(
    name="dark",
    ground="#161b26",
    ink="#e6eaf2",
    muted="#98a3b8",
    grid="#2a3244",
    lines=("#6ea6ff", "#ffad5c", "#4fcfa6", "#f08cc8", "#b7a1ff", "#dcc75c"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture in both dresses, as PNG bytes."""

    name: str
    title: str
    note: str
    wide: bool
    light: bytes
    dark: bytes

    def uri(self, dress: str) -> str:
        """Return it as a data URI."""
        data = self.light if dress == "light" else self.dark
        return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over the last ``window`` values (fewer at the beginning)."""
    result, total = [], 0.0
    for number, value in enumerate(values):
        total += value
        if number >= window:
            total -= values[number - window]
        result.append(total / min(number + 1, window))
    return result


def draw_all(chains: list[Chain]) -> list[Picture]:
    """Draw every picture for which there is something to show."""
    plain: list[tuple[str, str, str, bool, Callable[..., bool]]] = [
        (
            "loss",
            "Masked-LM loss (nats)",
            "Thin: each line of the log. Thick: their running mean. Points: held-out documents. "
            "Dotted: what word frequencies alone give on them.",
            True,
            _loss,
        ),
        (
            "mlm_accuracy",
            "Masked-LM accuracy",
            "Points: held-out documents.",
            False,
            _curve("mlm_accuracy", percent=True, validation=True),
        ),
        (
            "nsp_accuracy",
            "Next-sentence accuracy",
            "Points: held-out documents. Line: chance.",
            False,
            _curve("nsp_accuracy", percent=True, validation=True, level=0.5),
        ),
        ("learning_rate", "Learning rate", "", False, _curve("lr", plain=True)),
        (
            "gradient_norm",
            "Gradient norm, before clipping",
            "",
            False,
            _curve("grad_norm", log=True),
        ),
        (
            "trust_ratio",
            "LAMB's trust ratios",
            "Line: median over tensors. Band: lowest to highest.",
            False,
            _trust,
        ),
        (
            "throughput",
            "Real tokens per second",
            "Padding is not counted.",
            False,
            _curve("tokens_per_second"),
        ),
        (
            "mfu",
            "Model FLOP utilization",
            "Of the device's dense peak.",
            False,
            _curve("mfu", percent=True),
        ),
        (
            "tflops",
            "TFLOP/s per device",
            "What the mathematics asks for; nothing recomputed.",
            False,
            _curve("tflops"),
        ),
        (
            "stalls",
            "Waiting for the loader",
            "Share of the time between two lines.",
            False,
            _stalls,
        ),
        ("memory", "Peak memory of rank 0 (GiB)", "", False, _curve("memory_gib", plain=True)),
    ]
    pictures = []
    for name, title, note, wide, paint in plain:
        drawn = [_draw(chains, paint, dress, wide) for dress in (LIGHT, DARK)]
        if drawn[0] is not None and drawn[1] is not None:
            pictures.append(
                Picture(name=name, title=title, note=note, wide=wide, light=drawn[0], dark=drawn[1])
            )
    small = [picture for picture in pictures if not picture.wide]
    if len(small) % 2:  # the same curve as throughput, on another scale: leave no hole in the page
        pictures = [picture for picture in pictures if picture.name != "tflops"]
    return pictures


def _draw(
    chains: list[Chain], paint: Callable[..., bool], dress: Dress, wide: bool
) -> bytes | None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "figure.facecolor": dress.ground,
        "axes.facecolor": dress.ground,
        "savefig.facecolor": dress.ground,
        "text.color": dress.ink,
        "axes.edgecolor": dress.grid,
        "axes.labelcolor": dress.muted,
        "xtick.color": dress.muted,
        "ytick.color": dress.muted,
        "grid.color": dress.grid,
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "font.family": "DejaVu Sans",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(10.4, 3.9) if wide else (5.1, 2.75))
        try:
            if not paint(axes, chains, dress, wide):
                return None
            _mark(axes, chains, dress, wide)
            axes.grid(axis="x", visible=False)
            axes.margins(x=0.01)
            axes.xaxis.set_major_formatter(thousands(axes.xaxis))
            if wide:
                axes.set_xlabel("optimizer step, phases counted through")
            figure.tight_layout(pad=0.6)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
            return buffer.getvalue()
        finally:
            pyplot.close(figure)


def thousands(axis: Axis) -> Callable[..., str]:
    """Return a formatter that writes all labels of an axis alike: 5,000 or, from 10k on, 5k."""

    def label(value: float, _: object = None) -> str:
        highest = max(map(abs, axis.get_view_interval()))
        for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
            if highest >= least and value:
                return f"{value / unit:g}{letter}"
        return f"{value:,g}"

    return label


def _mark(axes: Axes, chains: list[Chain], dress: Dress, wide: bool) -> None:
    """Mark phase borders (dashed, once where runs share them) and restarts (small triangles)."""
    borders = {border for chain in chains for border in chain.borders()}
    for border in sorted(borders):
        axes.axvline(border, color=dress.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        if wide:
            axes.annotate(
                "phase 2",
                (border, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5, -4),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=dress.muted,
            )
    for number, chain in enumerate(chains):
        for step in chain.restarts():
            axes.plot(
                [step],
                [0.0],
                marker="^",
                markersize=6,
                color=_colour(dress, number),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=5,
            )
            if wide:
                axes.annotate(
                    "restart",
                    (step, 0),
                    xycoords=("data", "axes fraction"),
                    xytext=(6, 4),
                    textcoords="offset points",
                    fontsize=8,
                    color=dress.muted,
                )


def _colour(dress: Dress, number: int) -> str:
    return dress.lines[number % len(dress.lines)]


def _loss(axes: Axes, chains: list[Chain], dress: Dress, wide: bool) -> bool:
    drawn = False
    for number, chain in enumerate(chains):
        colour = _colour(dress, number)
        pieces = []
        for offset, run in zip(chain.offsets(), chain.runs):
            pairs = [
                (offset + line["step"], line["mlm_loss"])
                for line in run.train
                if line.get("mlm_loss") is not None
            ]
            pieces.append(pairs)
        for place, pairs in enumerate(pieces):
            if not pairs:
                continue
            steps, values = [p[0] for p in pairs], [p[1] for p in pairs]
            window = max(1, len(values) // 25)
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(
                steps,
                smooth(values, window),
                color=colour,
                linewidth=2.0,
                label=chain.title if place == 0 else None,
            )
            drawn = True
        entropies = chain.series("unigram_entropy", split="validation")[1]
        if entropies:
            axes.axhline(entropies[-1], color=colour, linestyle=":", linewidth=1.2)
        steps, values = chain.series("mlm_loss", split="validation")  # type: ignore[assignment]
        axes.plot(
            steps,
            values,
            linestyle="",
            marker="o",
            markersize=6.5,
            markerfacecolor=dress.ground,
            markeredgecolor=colour,
            markeredgewidth=1.8,
            zorder=4,
            label="held out" if number == 0 and steps else None,
        )
    if drawn:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, fontsize=9, columnspacing=1.6
        )
    return drawn


def _curve(
    key: str,
    *,
    percent: bool = False,
    validation: bool = False,
    log: bool = False,
    plain: bool = False,
    level: float | None = None,
) -> Callable[..., bool]:
    def paint(axes: Axes, chains: list[Chain], dress: Dress, wide: bool) -> bool:
        del wide
        drawn = False
        factor = 100.0 if percent else 1.0
        for number, chain in enumerate(chains):
            colour = _colour(dress, number)
            steps, values = chain.series(key)
            values = [value * factor for value in values]
            if steps and plain:
                axes.plot(steps, values, color=colour, linewidth=1.8)
            elif steps:
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
                _in_phases(axes, chain, steps, values, colour)
            drawn = drawn or bool(steps)
            if validation:
                steps, values = chain.series(key, split="validation")
                axes.plot(
                    steps,
                    [value * factor for value in values],
                    linestyle="",
                    marker="o",
                    markersize=4.5,
                    markerfacecolor=dress.ground,
                    markeredgecolor=colour,
                    markeredgewidth=1.5,
                    zorder=4,
                )
        if not drawn:
            return False
        if level is not None:
            axes.axhline(level * factor, color=dress.muted, linewidth=0.8, linestyle=(0, (1, 2)))
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        elif log:
            _logarithmic(axes)
        else:
            low = key in ("tokens_per_second", "tflops", "lr", "memory_gib")
            axes.set_ylim(bottom=0 if low else None)
            if key == "tokens_per_second":
                axes.yaxis.set_major_formatter(thousands(axes.yaxis))
            if key == "lr":
                axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        return True

    return paint


def _in_phases(
    axes: Axes, chain: Chain, steps: list[float], values: list[float], colour: str
) -> None:
    """Draw a running mean that starts anew with each phase."""
    edges = [*chain.offsets(), float("inf")]
    for begin, end in pairwise(edges):
        chosen = [(s, v) for s, v in zip(steps, values) if begin < s <= end]
        if chosen:
            window = max(1, len(chosen) // 15)
            axes.plot(
                [s for s, _ in chosen],
                smooth([v for _, v in chosen], window),
                color=colour,
                linewidth=1.8,
            )


def _trust(axes: Axes, chains: list[Chain], dress: Dress, wide: bool) -> bool:
    del wide
    drawn = False
    for number, chain in enumerate(chains):
        for place, (group, (steps, triples)) in enumerate(chain.trust_ratios().items()):
            colour = _colour(dress, number)
            low, middle, high = zip(*triples)
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            style = ("-", "--", ":")[place % 3]
            axes.plot(steps, middle, color=colour, linewidth=1.8, linestyle=style, label=group)
            drawn = True
    if drawn:
        _logarithmic(axes)
    return drawn


def _logarithmic(axes: Axes) -> None:
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


def _stalls(axes: Axes, chains: list[Chain], dress: Dress, wide: bool) -> bool:
    del wide
    drawn, highest = False, 0.0
    for number, chain in enumerate(chains):
        steps, seconds = chain.series("seconds")
        _, stalled = chain.series("stall_seconds")
        shares = [100 * s / max(t, 1e-9) for s, t in zip(stalled, seconds)]
        if steps:
            axes.plot(steps, shares, color=_colour(dress, number), linewidth=1.4)
            drawn, highest = True, max(highest, *shares)
    axes.set_ylim(0, max(5.0, 1.1 * highest))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    return drawn
